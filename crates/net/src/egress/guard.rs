//! Which addresses may be dialled. Upstreams are provisioned by operators and may be private (spec:
//! gateway §11); everything else that configuration of tenants leads us to may not, unless its host
//! is listed (spec: admin-api §5). What the environment of the process names is not judged: who
//! sets that could do anything.
//!
//! An IPv6 address that carries an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo, ISATAP) is
//! judged by both: a translator on the way would deliver it there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Net4 = (Ipv4Addr, u32);
type Net6 = (Ipv6Addr, u32);

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u32) -> Net4 {
    (Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(first: u16, second: u16, bits: u32) -> Net6 {
    (Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), bits)
}

const UNSPECIFIED6: Net6 = (Ipv6Addr::UNSPECIFIED, 128);
const LOOPBACK6: Net6 = (Ipv6Addr::LOCALHOST, 128);

/// Metadata services of clouds outside the link-local range: never, not even for a listed host.
const METADATA4: [Net4; 3] = [
    v4(100, 100, 100, 200, 32),
    v4(168, 63, 129, 16, 32),
    v4(192, 0, 0, 192, 32),
];
const METADATA6: [Net6; 1] = [(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128)];

const UPSTREAM4: [Net4; 3] = [
    v4(0, 0, 0, 0, 32),
    v4(169, 254, 0, 0, 16),
    v4(224, 0, 0, 0, 4),
];
const UPSTREAM6: [Net6; 3] = [UNSPECIFIED6, v6(0xfe80, 0, 10), v6(0xff00, 0, 8)];

const STRICT4: [Net4; 7] = [
    v4(0, 0, 0, 0, 8),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(192, 0, 0, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];
const STRICT6: [Net6; 5] = [
    UNSPECIFIED6,
    LOOPBACK6,
    v6(0xfe80, 0, 10),
    v6(0xfec0, 0, 10),
    v6(0xff00, 0, 8),
];

const PRIVATE4: [Net4; 4] = [
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
];
const PRIVATE6: [Net6; 1] = [v6(0xfc00, 0, 7)];

/// The address may not be dialled. Says so without naming it: the answer goes to tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the address is not permitted")]
pub struct Blocked;

/// Judges addresses.
#[derive(Clone, Debug)]
pub struct AddressGuard(Rules);

#[derive(Clone, Debug)]
enum Rules {
    Operator,
    Upstream,
    Loopback,
    Strict { private_hosts: BTreeSet<String> },
}

impl AddressGuard {
    /// For what the operator's own environment names: every address.
    pub fn operator() -> Self {
        Self(Rules::Operator)
    }

    /// For upstreams of resources: private addresses are allowed.
    pub fn upstream() -> Self {
        Self(Rules::Upstream)
    }

    /// For what must be on this machine, and nowhere else.
    pub fn loopback() -> Self {
        Self(Rules::Loopback)
    }

    /// For everything else: private addresses only for these hosts
    /// (`CARACAL_PRIVATE_EGRESS_HOSTS`).
    pub fn strict(private_hosts: impl IntoIterator<Item = String>) -> Self {
        let private_hosts = private_hosts
            .into_iter()
            .map(|host| host.to_lowercase())
            .collect();
        Self(Rules::Strict { private_hosts })
    }

    /// Judges one address that `host` stands for.
    ///
    /// # Errors
    /// [`Blocked`].
    pub fn judge(&self, host: &str, address: IpAddr) -> Result<(), Blocked> {
        match self.0 {
            Rules::Operator => return Ok(()),
            Rules::Loopback if address.is_loopback() => return Ok(()),
            Rules::Loopback => return Err(Blocked),
            Rules::Upstream | Rules::Strict { .. } => {}
        }
        match address {
            IpAddr::V4(address) => self.judge4(host, address),
            IpAddr::V6(address) => {
                self.judge6(host, address)?;
                embedded(address)
                    .into_iter()
                    .flatten()
                    .try_for_each(|v4| self.judge4(host, v4))
            }
        }
    }

    fn judge4(&self, host: &str, address: Ipv4Addr) -> Result<(), Blocked> {
        let is_in = |nets: &[Net4]| nets.iter().any(|net| within4(address, *net));
        let blocked = is_in(&METADATA4)
            || match &self.0 {
                Rules::Operator | Rules::Loopback => false,
                Rules::Upstream => is_in(&UPSTREAM4),
                Rules::Strict { .. } => is_in(&STRICT4) || (is_in(&PRIVATE4) && !self.lists(host)),
            };
        if blocked { Err(Blocked) } else { Ok(()) }
    }

    fn judge6(&self, host: &str, address: Ipv6Addr) -> Result<(), Blocked> {
        let is_in = |nets: &[Net6]| nets.iter().any(|net| within6(address, *net));
        let blocked = is_in(&METADATA6)
            || match &self.0 {
                Rules::Operator | Rules::Loopback => false,
                Rules::Upstream => is_in(&UPSTREAM6),
                Rules::Strict { .. } => is_in(&STRICT6) || (is_in(&PRIVATE6) && !self.lists(host)),
            };
        if blocked { Err(Blocked) } else { Ok(()) }
    }

    fn lists(&self, host: &str) -> bool {
        match &self.0 {
            Rules::Operator | Rules::Upstream | Rules::Loopback => true,
            Rules::Strict { private_hosts } => private_hosts.contains(&host.to_ascii_lowercase()),
        }
    }
}

fn within4(address: Ipv4Addr, (net, bits): Net4) -> bool {
    let shift = 32 - bits;
    address.to_bits().checked_shr(shift) == net.to_bits().checked_shr(shift)
}

fn within6(address: Ipv6Addr, (net, bits): Net6) -> bool {
    let shift = 128 - bits;
    address.to_bits().checked_shr(shift) == net.to_bits().checked_shr(shift)
}

/// The IPv4 addresses that an IPv6 address carries.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bits = address.to_bits();
    let low = Ipv4Addr::from_bits((bits & 0xffff_ffff) as u32);
    let at = |shift: u32| Ipv4Addr::from_bits(((bits >> shift) & 0xffff_ffff) as u32);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] => [Some(low), None],
        // Compatible addresses; `::` and `::1` have rules of their own.
        [0, 0, 0, 0, 0, 0, ..] if bits > 1 => [Some(low), None],
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => [Some(low), None],
        [0x2002, ..] => [Some(at(80)), None],
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => [Some(low), None],
        // Teredo: the server, and the client with every bit turned.
        [0x2001, 0, ..] => [Some(at(64)), Some(Ipv4Addr::from_bits(!low.to_bits()))],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// upstream, strict, strict for a listed host.
    #[rustfmt::skip] // a table
    const TABLE: &[(&str, bool, bool, bool)] = &[
        ("93.184.216.34",              true,  true,  true),
        ("2606:2800:220:1::1",         true,  true,  true),
        ("127.0.0.1",                  true,  false, false),
        ("127.255.255.254",            true,  false, false),
        ("::1",                        true,  false, false),
        ("0.0.0.0",                    false, false, false),
        ("0.1.2.3",                    true,  false, false),
        ("::",                         false, false, false),
        ("10.1.2.3",                   true,  false, true),
        ("172.16.0.1",                 true,  false, true),
        ("172.31.255.255",             true,  false, true),
        ("172.32.0.1",                 true,  true,  true),
        ("192.168.0.1",                true,  false, true),
        ("100.64.0.1",                 true,  false, true),
        ("100.127.255.255",            true,  false, true),
        ("100.128.0.1",                true,  true,  true),
        ("100.100.100.200",            false, false, false),
        ("168.63.129.16",              false, false, false),
        ("192.0.0.192",                false, false, false),
        ("::ffff:168.63.129.16",       false, false, false),
        ("192.0.0.8",                  true,  false, false),
        ("198.18.0.1",                 true,  false, false),
        ("198.20.0.1",                 true,  true,  true),
        ("fec0::1",                    true,  false, false),
        ("2606::5efe:169.254.169.254", false, false, false),
        ("2606::200:5efe:10.0.0.1",    true,  false, true),
        ("169.254.169.254",            false, false, false),
        ("169.254.0.1",                false, false, false),
        ("169.253.0.1",                true,  true,  true),
        ("224.0.0.1",                  false, false, false),
        ("239.255.255.255",            false, false, false),
        ("240.0.0.1",                  true,  false, false),
        ("255.255.255.255",            true,  false, false),
        ("fe80::1",                    false, false, false),
        ("febf::1",                    false, false, false),
        ("ff02::1",                    false, false, false),
        ("fc00::1",                    true,  false, true),
        ("fd12:3456::1",               true,  false, true),
        ("fd00:ec2::254",              false, false, false),
        ("fd00:ec2::253",              true,  false, true),
        // Mapped, compatible, NAT64, 6to4 and Teredo carry an IPv4 address.
        ("::ffff:93.184.216.34",       true,  true,  true),
        ("::ffff:127.0.0.1",           true,  false, false),
        ("::ffff:169.254.169.254",     false, false, false),
        ("::ffff:10.0.0.1",            true,  false, true),
        ("::ffff:0.0.0.0",             false, false, false),
        ("::169.254.169.254",          false, false, false),
        ("::127.0.0.1",                true,  false, false),
        ("64:ff9b::8.8.8.8",           true,  true,  true),
        ("64:ff9b::169.254.169.254",   false, false, false),
        ("64:ff9b::127.0.0.1",         true,  false, false),
        ("64:ff9b::10.0.0.1",          true,  false, true),
        ("64:ff9b:1::169.254.169.254", false, false, false),
        ("2002:a9fe:a9fe::1",          false, false, false),
        ("2002:7f00:1::",              true,  false, false),
        ("2002:808:808::1",            true,  true,  true),
        ("2001:0:808:808::5601:5601",  false, false, false),
        ("2001:0:808:808::f7f7:f7f7",  true,  true,  true),
    ];

    #[test]
    fn addresses_are_judged_as_the_rules_say() {
        let upstream = AddressGuard::upstream();
        let strict = AddressGuard::strict(["Inside.Example".to_owned()]);
        for (text, from_upstream, from_strict, from_listed) in TABLE {
            let address: IpAddr = text.parse().unwrap();
            let seen = [
                upstream.judge("any.example", address).is_ok(),
                strict.judge("other.example", address).is_ok(),
                strict.judge("inside.example", address).is_ok(),
            ];
            assert_eq!(seen, [*from_upstream, *from_strict, *from_listed], "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn wrapping_an_address_never_makes_it_pass(bits: u32) {
            let plain = Ipv4Addr::from_bits(bits);
            let mapped = plain.to_ipv6_mapped();
            let nat64 = Ipv6Addr::from_bits((0x0064_ff9b_u128 << 96) | u128::from(bits));
            let six_to_four = Ipv6Addr::from_bits((0x2002_u128 << 112) | (u128::from(bits) << 80));
            for guard in [AddressGuard::upstream(), AddressGuard::strict([])] {
                let wanted = guard.judge("h", plain.into());
                for wrapped in [mapped, nat64, six_to_four] {
                    proptest::prop_assert_eq!(guard.judge("h", wrapped.into()), wanted);
                }
            }
        }
    }
}
