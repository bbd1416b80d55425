//! Where a process listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use caracal_net::settings::{Mistakes, Mode, Strings};

use crate::roles::Role;

caracal_net::settings! {
    /// Where a process listens.
    pub struct Addresses {
        /// Address to listen on. Unset is every address of the machine; for API and Coordinator, unless
        /// CARACAL_MODE is rc or stable, only 127.0.0.1.
        host: Option<IpAddr> = var("HOST").such_as("0.0.0.0"),
        /// Port of a process with one service. STS, Gateway and Audit take only their own.
        port: Option<u16> = var("PORT").within("1", "65535").such_as("3000"),
        /// Port of the API.
        api: u16 = var("API_PORT").or("3000").within("1", "65535").only_for(&["api"]),
        /// Port of the STS.
        sts: u16 = var("STS_PORT").or("8080").within("1", "65535").only_for(&["sts"]),
        /// Port of the Gateway.
        gateway: u16 = var("GATEWAY_PORT").or("8081").within("1", "65535").only_for(&["gateway"]),
        /// Port of the Coordinator.
        coordinator: u16 = var("COORDINATOR_PORT").or("4000").within("1", "65535")
            .only_for(&["coordinator"]),
        /// Port of Audit.
        audit: u16 = var("AUDIT_PORT").or("9090").within("1", "65535").only_for(&["audit"]),
        /// Whether this is a published deployment: those listen for other machines by default.
        mode: Option<Mode> = var("CARACAL_MODE"),
    }
}

impl Addresses {
    /// Reads the settings, and checks what they say together.
    pub fn read(from: &dyn Strings, roles: &[Role], mistakes: &mut Mistakes) -> Option<Self> {
        Self::load_by(from, mistakes, |addresses, mistakes| {
            if let ([role], Some(port)) = (roles, addresses.port)
                && !role.takes_any_port()
                && port != role.port()
            {
                // A container of this service that listens elsewhere is one that nobody finds
                // (operations specification §1).
                let (name, own) = (role.name(), role.port());
                mistakes.add(
                    "PORT",
                    format!(
                        "{port} is not {own}, the port of {name}. Leave PORT out; {}_PORT moves it \
                         on purpose",
                        name.to_uppercase()
                    ),
                );
            }
        })
    }

    /// Where one of `alone`, or of several, listens.
    pub fn of(&self, role: Role, alone: bool) -> SocketAddr {
        let own = match role {
            Role::Api => self.api,
            Role::Sts => self.sts,
            Role::Gateway => self.gateway,
            Role::Coordinator => self.coordinator,
            Role::Audit => self.audit,
        };
        // What names the service counts before what names none.
        let moved = own != role.port();
        let port = self
            .port
            .filter(|_| alone && !moved && role.takes_any_port());
        let port = port.unwrap_or(own);
        let local = role.takes_any_port() && matches!(self.mode, None | Some(Mode::Dev));
        let unset = if local {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        SocketAddr::new(self.host.unwrap_or(IpAddr::V4(unset)), port)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at(role: Role, alone: bool, pairs: &[(&str, &str)]) -> String {
        let from: BTreeMap<String, String> = pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let mut mistakes = Mistakes::default();
        let roles = if alone {
            vec![role]
        } else {
            Role::ALL.to_vec()
        };
        match Addresses::read(&from, &roles, &mut mistakes) {
            Some(addresses) => addresses.of(role, alone).to_string(),
            None => mistakes.to_string(),
        }
    }

    #[test]
    fn a_single_role_takes_port_and_each_role_takes_its_own() {
        assert_eq!(at(Role::Sts, true, &[]), "0.0.0.0:8080");
        assert_eq!(at(Role::Sts, true, &[("PORT", "8080")]), "0.0.0.0:8080");
        assert_eq!(
            at(Role::Sts, true, &[("PORT", "9")]),
            "PORT: 9 is not 8080, the port of sts. Leave PORT out; STS_PORT moves it on purpose"
        );
        assert_eq!(at(Role::Api, true, &[("PORT", "9")]), "127.0.0.1:9");
        assert_eq!(at(Role::Sts, false, &[("PORT", "9")]), "0.0.0.0:8080");
        assert_eq!(
            at(Role::Sts, false, &[("STS_PORT", "9"), ("HOST", "10.0.0.1")]),
            "10.0.0.1:9"
        );
    }

    #[test]
    fn the_control_plane_of_an_undeclared_deployment_listens_for_this_machine_only() {
        assert_eq!(at(Role::Api, true, &[]), "127.0.0.1:3000");
        assert_eq!(
            at(Role::Coordinator, true, &[("CARACAL_MODE", "dev")]),
            "127.0.0.1:4000"
        );
        assert_eq!(
            at(Role::Api, true, &[("CARACAL_MODE", "stable")]),
            "0.0.0.0:3000"
        );
    }
}
