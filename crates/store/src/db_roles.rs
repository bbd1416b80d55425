//! A Postgres role for each service, with what its statements need and no more (operations
//! specification §8).
//!
//! **Forces.** Services that share one role can each do what any of them can: whoever takes over a
//! Gateway rewrites policy. Grants that are kept beside the code are soon too narrow, which stops a
//! service, or too wide, which nobody notices. **Choice.** One table says who may do what with which
//! table; [`Store::grant_roles`] makes the database say the same, in one transaction, so that running
//! services never stand without. A test holds the table to the schema, and the end-to-end scenarios
//! run every service as its role.
//!
//! **Consequence.** Nobody but the owner, who migrates, may change or delete evidence: months of the
//! ledger are dropped by a function that Audit may call, and that can name nothing else.

use std::fmt::Write as _;

use caracal_model::Secret;
use postgres_protocol::password::scram_sha_256;

use crate::error::StoreError;
use crate::migrate::ADVISORY_LOCK;
use crate::pg::{self, Pg};
use crate::store::{Engine, Store};

/// A service that has a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Management.
    Api,
    /// Token exchange.
    Sts,
    /// Proxy.
    Gateway,
    /// Sessions and Delegations.
    Coordinator,
    /// Ledger.
    Audit,
}

impl Service {
    /// In the order of the columns of [`TABLES`].
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Sts,
        Self::Gateway,
        Self::Coordinator,
        Self::Audit,
    ];

    /// The end of its role's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Sts => "sts",
            Self::Gateway => "gateway",
            Self::Coordinator => "coordinator",
            Self::Audit => "audit",
        }
    }
}

/// A table, and what each service does with it: `r` reads, `a` adds, `w` changes, `d` deletes.
struct Table {
    name: &'static str,
    by: [&'static str; 5],
}

const fn table(name: &'static str, by: [&'static str; 5]) -> Table {
    Table { name, by }
}

#[rustfmt::skip] // a table reads best as a table
const TABLES: &[Table] = &[
    //                                  api     sts     gateway coord.  audit
    table("zones",                   ["raw",  "r",    "r",    "r",    "r"  ]),
    table("zone_keys",               ["raw",  "ra",   "r",    "r",    ""   ]),
    table("applications",            ["raw",  "rw",   "r",    "r",    ""   ]),
    table("resources",               ["raw",  "r",    "r",    "r",    ""   ]),
    table("providers",               ["raw",  "r",    "r",    "r",    ""   ]),
    table("policies",                ["raw",  "",     "",     "",     ""   ]),
    table("policy_versions",         ["ra",   "r",    "r",    "r",    ""   ]),
    table("policy_sets",             ["raw",  "r",    "",     "",     ""   ]),
    table("policy_set_versions",     ["ra",   "r",    "r",    "r",    ""   ]),
    table("policy_bindings",         ["rawd", "r",    "r",    "r",    ""   ]),
    table("subject_issuers",         ["raw",  "r",    "r",    "r",    ""   ]),
    table("subject_cutoffs",         ["raw",  "r",    "r",    "r",    "r"  ]),
    table("workloads",               ["rawd", "r",    "",     "",     ""   ]),
    table("admin_tokens",            ["raw",  "",     "",     "",     ""   ]),
    table("platform_settings",       ["raw",  "r",    "",     "",     "r"  ]),
    // Envelopes. A Gateway reads them with its zones, and has no key to open one.
    table("secret_store",            ["rawd", "rawd", "r",    "r",    ""   ]),
    table("provider_connections",    ["raw",  "raw",  "",     "",     ""   ]),
    table("authority_records",       ["rw",   "ra",   "r",    "rwd",  "r"  ]),
    table("sessions",                ["rw",   "r",    "r",    "rawd", "r"  ]),
    table("session_counts",          ["rw",   "",     "",     "raw",  ""   ]),
    table("delegations",             ["rw",   "r",    "r",    "rawd", "r"  ]),
    table("delegation_epochs",       ["raw",  "r",    "r",    "raw",  "r"  ]),
    table("idempotency_receipts",    ["",     "",     "",     "rawd", ""   ]),
    table("approvals",               ["rawd", "rawd", "",     "",     ""   ]),
    table("approval_evidence",       ["rad",  "rad",  "",     "",     ""   ]),
    table("notification_sinks",      ["rawd", "",     "",     "",     ""   ]),
    table("notification_deliveries", ["rawd", "",     "",     "",     ""   ]),
    // Every process sends what waits; who changes nothing has nothing to add.
    table("outbox",                  ["rawd", "rawd", "rwd",  "rawd", "rwd"]),
    table("service_state",           ["",     "",     "",     "",     ""   ]),
    table("admin_audit_intents",     ["rawd", "",     "",     "rawd", "r"  ]),
    table("admin_audit_events",      ["ra",   "",     "",     "ra",   "r"  ]),
    table("admin_audit_heads",       ["raw",  "",     "",     "raw",  "r"  ]),
    table("audit_zones",             ["r",    "r",    "r",    "r",    "ra" ]),
    table("audit_events",            ["r",    "",     "",     "",     "ra" ]),
    table("audit_heads",             ["r",    "",     "",     "",     "raw"]),
    table("audit_floors",            ["r",    "",     "",     "",     "raw"]),
    table("audit_trees",             ["r",    "",     "",     "",     "raw"]),
    table("audit_tiles",             ["r",    "",     "",     "",     "raw"]),
    table("audit_checkpoints",       ["r",    "",     "",     "",     "ra" ]),
    table("audit_checkpoint_wishes", ["ra",   "",     "",     "",     "rad"]),
    table("audit_findings",          ["r",    "",     "",     "",     "ra" ]),
    table("audit_alerts",            ["r",    "",     "",     "",     "ra" ]),
    // The API replaces the key of checkpoints, and seals keys again; Audit destroys private halves.
    table("audit_keys",              ["raw",  "",     "",     "",     "raw"]),
    table("audit_dead_letters",      ["r",    "",     "",     "",     "rad"]),
    table("audit_exports",           ["r",    "",     "",     "",     "raw"]),
    table("audit_export_ranges",     ["r",    "",     "",     "",     "rad"]),
    table("audit_export_positions",  ["r",    "",     "",     "",     "raw"]),
    table("schema_migrations",       ["r",    "r",    "r",    "r",    "r"  ]),
];

/// What Audit alone may call: they run as their owner, and can name nothing but months of the ledger.
const MONTHS: [&str; 2] = ["audit_month_add(bigint)", "audit_month_drop(bigint)"];

/// Makes a role that cannot log in yet, unless it is there; two runners may try at once.
const CREATE: &str = "SELECT format('DO $x$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = %1$L) THEN
            CREATE ROLE %1$I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS;
        END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $x$', CAST($1 AS TEXT))";
const LOGIN: &str =
    "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', CAST($1 AS TEXT), CAST($2 AS TEXT))";
const USAGE: &str = "SELECT format('GRANT CONNECT ON DATABASE %1$I TO %2$I;
    GRANT USAGE ON SCHEMA %3$I TO %2$I;
    REVOKE ALL ON ALL TABLES IN SCHEMA %3$I FROM %2$I',
    current_database(), CAST($1 AS TEXT), current_schema())";

/// A role that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its name.
    pub role: String,
    /// Whether its password was set; else it logs in as it did before, or not at all.
    pub password: bool,
}

impl Store {
    /// Makes the roles `<prefix><service>`, with exactly the grants of the table here; a password lets
    /// one log in with it. The schema must be up to date, and whoever is connected must own it and
    /// may create roles. On SQLite there are no roles, and none are granted.
    ///
    /// # Errors
    /// Whatever Postgres says; then nothing was changed.
    pub async fn grant_roles(
        &self,
        prefix: &str,
        passwords: &[(Service, Secret<String>)],
    ) -> Result<Vec<Granted>, StoreError> {
        match self.engine() {
            Engine::Lite(_) => Ok(Vec::new()),
            Engine::Pg(pg) => Box::pin(grant(pg, prefix, passwords)).await,
        }
    }
}

async fn grant(
    pg: &Pg,
    prefix: &str,
    passwords: &[(Service, Secret<String>)],
) -> Result<Vec<Granted>, StoreError> {
    let fails = |error| pg::error(error, "granting the roles of services");
    let mut client = pg.client("granting the roles of services").await?;
    let tx = client.transaction().await.map_err(fails)?;
    tx.batch_execute("SET LOCAL statement_timeout = 0")
        .await
        .map_err(fails)?;
    tx.batch_execute(ADVISORY_LOCK).await.map_err(fails)?;
    for month in MONTHS {
        let revoke = format!("REVOKE EXECUTE ON FUNCTION {month} FROM PUBLIC");
        tx.batch_execute(&revoke).await.map_err(fails)?;
    }
    let mut all = Vec::new();
    for service in Service::ALL {
        let role = format!("{prefix}{}", service.name());
        // Names and passwords are quoted by the server, which takes none as a parameter here.
        for made in [CREATE, USAGE] {
            let row = tx.query_one(made, &[&role]).await.map_err(fails)?;
            let statement: String = row.try_get(0).map_err(fails)?;
            tx.batch_execute(&statement).await.map_err(fails)?;
        }
        let quoted = tx
            .query_one("SELECT quote_ident($1)", &[&role])
            .await
            .and_then(|row| row.try_get::<_, String>(0))
            .map_err(fails)?;
        tx.batch_execute(&grants(service, &quoted))
            .await
            .map_err(fails)?;
        let mut password = passwords.iter().filter(|(of, _)| *of == service);
        let password = password.next().map(|(_, password)| password);
        if let Some(password) = password {
            // What the server may log is not the password, but what it checks one with.
            let verifier = scram_sha_256(password.expose().as_bytes());
            let row = tx.query_one(LOGIN, &[&role, &verifier]).await;
            let statement: String = row.and_then(|row| row.try_get(0)).map_err(fails)?;
            tx.batch_execute(&statement).await.map_err(fails)?;
        }
        all.push(Granted {
            role,
            password: password.is_some(),
        });
    }
    tx.commit().await.map_err(fails)?;
    Ok(all)
}

/// The grants of a service to the role of this quoted name.
fn grants(service: Service, role: &str) -> String {
    let mut statements = String::new();
    for table in TABLES {
        let verbs: Vec<&str> = table.verbs(service).collect();
        if !verbs.is_empty() {
            // Writing to a String cannot fail.
            let (verbs, name) = (verbs.join(", "), table.name);
            let _ = writeln!(statements, "GRANT {verbs} ON {name} TO {role};");
        }
    }
    if service == Service::Audit {
        for month in MONTHS {
            let _ = writeln!(statements, "GRANT EXECUTE ON FUNCTION {month} TO {role};");
        }
    }
    statements
}

impl Table {
    fn verbs(&self, service: Service) -> impl Iterator<Item = &'static str> {
        let columns = Service::ALL.into_iter().zip(self.by);
        let mut own = columns.filter(move |(of, _)| *of == service);
        let letters = own.next().map_or("", |(_, letters)| letters);
        letters.chars().map(|letter| match letter {
            'r' => "SELECT",
            'a' => "INSERT",
            'w' => "UPDATE",
            _ => "DELETE",
        })
    }
}

#[cfg(test)]
mod tests;
