//! Names that nearly are a setting.

use strsim::damerau_levenshtein;

/// Changes of one letter that may make a name of ours.
const SLIPS: usize = 2;
/// Shorter names are too easily near to another.
const SHORTEST: usize = 6;

/// The known name that was probably meant; none when the name is known, or near to none.
pub fn meant<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() < SHORTEST || known.contains(&name) {
        return None;
    }
    // Hardly anybody slips at the first letter, and `SSL_CERT_FILE` is somebody else's.
    let near = known
        .iter()
        .filter(|one| one.len() >= SHORTEST && one.as_bytes().first() == name.as_bytes().first());
    let near = near.map(|one| (damerau_levenshtein(name, one), *one));
    let (slips, nearest) = near.min()?;
    if slips <= SLIPS {
        return Some(nearest);
    }
    // Cut short at a word, and no other name begins so.
    let mut longer = known.iter().filter(|one| {
        let rest = one.strip_prefix(name);
        name.matches('_').count() >= 2 && rest.is_some_and(|rest| rest.starts_with('_'))
    });
    match (longer.next(), longer.next()) {
        (Some(one), None) => Some(*one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_a_name_of_somebody_else() {
        let known = [
            "STS_MINT_RATE_LIMIT_PER_MIN",
            "AUDIT_RETENTION_DAYS",
            "DB_MAX_CONNS",
            "HOST",
        ];
        for (name, told) in [
            ("STS_MINT_RATE_LIMIT_PER_MIN", None),
            ("STS_MINT_RATE_LIMIT", Some("STS_MINT_RATE_LIMIT_PER_MIN")),
            ("AUDIT_RETENTON_DAYS", Some("AUDIT_RETENTION_DAYS")),
            ("AUDIT_RETENTION_DYAS", Some("AUDIT_RETENTION_DAYS")),
            ("DB_MAX_CONN", Some("DB_MAX_CONNS")),
            ("HOSTS", None),
            ("PATH", None),
            ("AUDIT_SOMETHING_ELSE", None),
            ("TB_MAX_CONNS", None),
        ] {
            assert_eq!(meant(name, &known), told, "{name}");
        }
    }
}
