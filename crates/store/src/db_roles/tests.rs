use std::collections::BTreeSet;
use std::sync::Arc;

use caracal_crypto::os::SystemClock;

use super::*;
use crate::testing::{Database, raw};
use crate::{PoolOptions, params};

/// Databases of tests share a server, and roles are of the server.
fn prefix(database: &Database) -> String {
    let url = database.url().unwrap();
    let name = url.expose().rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap();
    format!("t_{}_", &name[name.len() - 12..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_says_who_may_do_what() {
    for database in Database::each("tables of roles").await {
        let store = database.open().await;
        store.migrate().await.unwrap();
        if database.url().is_none() {
            assert_eq!(store.grant_roles("x", &[]).await.unwrap(), []);
        } else {
            let tables = raw("SELECT c.relname::text AS name FROM pg_class c
                JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
                    AND NOT c.relispartition");
            let rows = store.query(&tables, &[]).await.unwrap();
            let there: BTreeSet<String> =
                rows.iter().map(|row| row.string("name").unwrap()).collect();
            let told: BTreeSet<String> = TABLES.iter().map(|table| table.name.to_owned()).collect();
            assert_eq!(there, told, "a new table needs a line in db_roles.rs");
        }
        store.shutdown().await;
        database.remove().await;
    }
}

#[test]
fn nobody_changes_evidence_and_a_gateway_changes_nothing() {
    for table in TABLES {
        let verbs = |service| table.verbs(service).collect::<BTreeSet<_>>();
        let ledger = [
            "audit_events",
            "audit_checkpoints",
            "audit_findings",
            "admin_audit_events",
        ];
        let policy = ["policy_versions", "policy_set_versions"];
        for service in Service::ALL {
            let can = verbs(service);
            if ledger.contains(&table.name) || policy.contains(&table.name) {
                assert!(
                    !can.contains("UPDATE") && !can.contains("DELETE"),
                    "{}",
                    table.name
                );
            }
        }
        let gateway = verbs(Service::Gateway);
        let outbox = table.name == "outbox";
        assert!(!gateway.contains("INSERT"), "{}", table.name);
        assert!(
            outbox || gateway.is_subset(&BTreeSet::from(["SELECT"])),
            "{}",
            table.name
        );
    }
}

/// What a role says of a statement: done, or the code of the refusal.
async fn says(url: &str, statement: &str) -> String {
    let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
    let (client, connection) = match connected {
        Ok(connected) => connected,
        Err(error) => return error.code().map_or("none", |code| code.code()).to_owned(),
    };
    let work = async {
        let done = client.batch_execute(statement).await;
        drop(client);
        done
    };
    let (done, _) = futures_util::join!(work, connection);
    match done {
        Ok(()) => "done".to_owned(),
        Err(error) => error.code().map_or("none", |code| code.code()).to_owned(),
    }
}

const DENIED: &str = "42501";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_do_what_their_service_does_and_no_more() {
    for database in Database::each("roles").await {
        let Some(url) = database.url() else {
            continue;
        };
        // The owner of a test's database may not create roles; who runs the tests may.
        let superuser = url.expose().split('?').next().unwrap().to_owned();
        let pool = PoolOptions::default();
        let store = database
            .open_pool(Arc::new(SystemClock::default()), pool)
            .await;
        store.migrate().await.unwrap();
        store.shutdown().await;
        let owner = crate::Store::open(
            crate::StoreConfig {
                url: crate::StoreUrl::Pg {
                    url: Secret::new(superuser.clone()),
                    tls: None,
                    pool: PoolOptions::default(),
                },
                durability: crate::Durability::Process,
            },
            Arc::new(SystemClock::default()),
            Arc::new(caracal_model::Ids::new(
                Arc::new(SystemClock::default()),
                Arc::new(caracal_crypto::os::OsRng),
            )),
        );
        let owner = owner.await.unwrap();
        let prefix = prefix(&database);
        let password = Secret::new("it's a \"secret\"".to_owned());
        let passwords = [(Service::Gateway, password)];
        let granted = owner.grant_roles(&prefix, &passwords).await.unwrap();
        assert_eq!(granted.len(), 5);
        assert_eq!(granted.iter().filter(|one| one.password).count(), 1);
        // Again, with what was granted too much taken away.
        let too_much = format!("GRANT DELETE ON zones TO {prefix}gateway");
        assert_eq!(says(&superuser, &too_much).await, "done");
        assert_eq!(owner.grant_roles(&prefix, &[]).await.unwrap().len(), 5);

        let roles = raw(
            "SELECT rolname::text AS name, rolcanlogin AS login, rolpassword AS secret
            FROM pg_authid WHERE starts_with(rolname::text, $1) ORDER BY 1",
        );
        let rows = owner
            .query(&roles, &params![prefix.as_str()])
            .await
            .unwrap();
        for row in &rows {
            let is_gateway = row.string("name").unwrap().ends_with("gateway");
            assert_eq!(row.bool("login").unwrap(), is_gateway);
            if is_gateway {
                assert!(row.string("secret").unwrap().starts_with("SCRAM-SHA-256$"));
            }
        }

        let as_role = |service: Service| {
            let role = format!("{prefix}{}", service.name());
            format!("{superuser}?options=-c%20role%3D{role}%20-c%20caracal.zone_id%3D*")
        };
        let month = "SELECT audit_month_add(1893456000000000)";
        for (service, statement, said) in [
            (Service::Gateway, "SELECT * FROM zones", "done"),
            (Service::Gateway, "UPDATE outbox SET attempts = 0", "done"),
            (
                Service::Gateway,
                "INSERT INTO outbox DEFAULT VALUES",
                DENIED,
            ),
            (Service::Gateway, "DELETE FROM zones", DENIED),
            (
                Service::Gateway,
                "UPDATE sessions SET status = 'active'",
                DENIED,
            ),
            (
                Service::Gateway,
                "UPDATE policy_versions SET content = ''",
                DENIED,
            ),
            (
                Service::Gateway,
                "UPDATE policy_bindings SET version_id = ''",
                DENIED,
            ),
            (
                Service::Gateway,
                "UPDATE authority_records SET status = 'active'",
                DENIED,
            ),
            (Service::Gateway, "SELECT * FROM admin_tokens", DENIED),
            (Service::Gateway, "SELECT * FROM audit_events", DENIED),
            (Service::Gateway, month, DENIED),
            (Service::Gateway, "CREATE TABLE mine (x INT)", DENIED),
            (
                Service::Sts,
                "UPDATE policy_bindings SET version_id = ''",
                DENIED,
            ),
            (
                Service::Sts,
                "UPDATE sessions SET status = 'active'",
                DENIED,
            ),
            (
                Service::Coordinator,
                "UPDATE sessions SET status = status",
                "done",
            ),
            (
                Service::Coordinator,
                "UPDATE policy_bindings SET version_id = ''",
                DENIED,
            ),
            (
                Service::Api,
                "UPDATE audit_events SET decision = 'allow'",
                DENIED,
            ),
            (
                Service::Api,
                "UPDATE policy_versions SET content = ''",
                DENIED,
            ),
            (
                Service::Audit,
                "UPDATE audit_events SET decision = 'allow'",
                DENIED,
            ),
            (Service::Audit, "DELETE FROM audit_events", DENIED),
            (Service::Audit, "SELECT * FROM secret_store", DENIED),
            (Service::Audit, month, "done"),
            (
                Service::Audit,
                "SELECT audit_month_drop(1893456000000000)",
                "done",
            ),
        ] {
            let told = says(&as_role(service), statement).await;
            assert_eq!(told, said, "{service:?}: {statement}");
        }
        let mut gone = String::new();
        for service in Service::ALL {
            let _ = write!(
                gone,
                "DROP OWNED BY {prefix}{0}; DROP ROLE {prefix}{0};",
                service.name()
            );
        }
        assert_eq!(says(&superuser, &gone).await, "done");
        owner.shutdown().await;
        database.remove().await;
    }
}
