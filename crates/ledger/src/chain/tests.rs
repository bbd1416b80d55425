use super::*;
use caracal_model::Secret;
use proptest::prelude::*;

/// A row as an attacker with access to the table can write it.
#[derive(Clone, Debug)]
struct Row {
    seq: u64,
    wire: String,
    content: String,
    hash: String,
    hmac: String,
}

impl Row {
    fn of(link: Link, wire: &str) -> Self {
        Self {
            seq: link.seq,
            wire: wire.to_owned(),
            content: link.content_sha256,
            hash: link.chain_hash,
            hmac: link.chain_hmac,
        }
    }

    fn link(&self) -> StoredLink<'_> {
        StoredLink {
            seq: self.seq,
            wire: &self.wire,
            content_sha256: &self.content,
            chain_hash: &self.hash,
            chain_hmac: &self.hmac,
        }
    }
}

fn key(byte: u8) -> HmacKey {
    HmacKey::from_bytes(Secret::new(vec![byte; 32]))
}

fn chain<S: AsRef<str>>(wires: &[S], key: Option<&HmacKey>) -> Vec<Row> {
    let mut head = None;
    let link = |wire: &S| {
        let link = append(head.as_ref(), wire.as_ref(), key);
        head = Some(link.head().clone());
        Row::of(link, wire.as_ref())
    };
    wires.iter().map(link).collect()
}

fn check(rows: &[Row], key: Option<&HmacKey>) -> Result<Head, Broken> {
    verify(rows.iter().map(Row::link), None, key)
}

fn head_of(row: &Row) -> Head {
    Head::stored(row.seq, &row.hash).unwrap()
}

#[test]
fn the_first_links_have_the_documented_hashes() {
    // Computed apart from this code, in another language; key: 32 bytes of 0x01.
    let rows = chain(&["{\"id\":\"evt-1\"}", "{\"id\":\"evt-2\"}"], Some(&key(1)));
    let hashes: Vec<_> = rows
        .iter()
        .map(|row| (row.seq, &*row.hash, &*row.hmac))
        .collect();
    assert_eq!(
        hashes,
        [
            (
                1,
                "9e6456701e49edddd07c309789102662fa811f520c9514f435d44f64fa324bbb",
                "c782e6c4227b1e293140a0def0dbee05cf30c1da8057c3c23520297c1e20b4a9"
            ),
            (
                2,
                "527716e99664d67863ae0349e59d1097214e40da84826efeb16a79de2be7d949",
                "b41f3cb1e7eac1960e0e8090d07940bc4415f7ee24e75f240a92d01fdfb0ac6f"
            ),
        ]
    );
}

#[test]
fn a_chain_is_verified_in_pages() {
    let rows = chain(&["a", "b", "c", "d"], Some(&key(1)));
    let first = check(&rows[..2], Some(&key(1))).unwrap();
    assert_eq!(first, head_of(&rows[1]));
    let rest = verify(rows[2..].iter().map(Row::link), Some(&first), Some(&key(1)));
    assert_eq!(rest, Ok(head_of(&rows[3])));
}

#[test]
fn an_empty_chain_is_the_genesis() {
    assert_eq!(check(&[], None), Ok(Head::GENESIS));
}

#[test]
fn a_cut_end_shows_against_a_kept_head() {
    let rows = chain(&["a", "b", "c"], None);
    let mut verifier = Verifier::new(None, None);
    verifier.check(&rows[0].link()).unwrap();
    let kept = head_of(&rows[2]);
    assert_eq!(
        verifier.ends_at(&kept),
        Err(Broken {
            seq: 2,
            why: Why::Truncated
        })
    );
    verifier.check(&rows[1].link()).unwrap();
    verifier.check(&rows[2].link()).unwrap();
    assert_eq!(verifier.ends_at(&kept), Ok(()));
}

#[test]
fn links_without_a_code_are_refused_when_there_is_a_key() {
    let rows = chain(&["a"], None);
    assert_eq!(rows[0].hmac, "");
    assert!(check(&rows, None).is_ok());
    let expected = Broken {
        seq: 1,
        why: Why::Author,
    };
    assert_eq!(check(&rows, Some(&key(1))), Err(expected));
}

#[test]
fn after_a_break_the_verifier_stays_where_the_chain_held() {
    let rows = chain(&["a", "b", "c"], None);
    let mut verifier = Verifier::new(None, None);
    verifier.check(&rows[0].link()).unwrap();
    verifier.check(&rows[2].link()).unwrap_err();
    assert_eq!(verifier.head(), &head_of(&rows[0]));
    verifier.check(&rows[1].link()).unwrap();
}

fn wires() -> impl Strategy<Value = Vec<String>> {
    // Equal neighbours are likely: a chain must tell them apart by their places.
    prop::collection::vec("[ab]{1,2}", 2..12)
}

proptest! {
    #[test]
    fn what_was_appended_verifies(wires in wires(), keyed in any::<bool>()) {
        let key = keyed.then(|| key(1));
        let rows = chain(&wires, key.as_ref());
        prop_assert_eq!(check(&rows, key.as_ref()), Ok(head_of(rows.last().unwrap())));
    }

    #[test]
    fn an_edit_is_found_in_its_place(
        wires in wires(), at in any::<prop::sample::Index>(), field in 0..4, keyed in any::<bool>(),
    ) {
        let key = keyed.then(|| key(1));
        let mut rows = chain(&wires, key.as_ref());
        let at = at.index(rows.len());
        let flip = |hex: &mut String| {
            let other = if hex.starts_with('0') { "1" } else { "0" };
            hex.replace_range(..1, other);
        };
        match field {
            0 => rows[at].wire.push('x'),
            1 => flip(&mut rows[at].content),
            2 => flip(&mut rows[at].hash),
            _ if keyed => flip(&mut rows[at].hmac),
            _ => rows[at].seq += 1,
        }
        prop_assert_eq!(check(&rows, key.as_ref()).unwrap_err().seq, at as u64 + 1);
    }

    /// As an edit, but content hash and link were made to fit again.
    #[test]
    fn an_edit_with_mended_hashes_is_found(wires in wires(), at in any::<prop::sample::Index>()) {
        let mut rows = chain(&wires, Some(&key(1)));
        let at = at.index(rows.len());
        let mut forged = wires.clone();
        forged[at].push('x');
        // Without the key: hashes fit from here to the end, codes stay those of the old links.
        for (row, mended) in rows.iter_mut().zip(chain(&forged, None)).skip(at) {
            *row = Row { hmac: row.hmac.clone(), ..mended };
        }
        let expected = Broken { seq: at as u64 + 1, why: Why::Author };
        prop_assert_eq!(check(&rows, Some(&key(1))), Err(expected));
        // Codes of another key do not help.
        let other = chain(&forged, Some(&key(2)));
        prop_assert_eq!(check(&other, Some(&key(1))).unwrap_err().seq, 1);
        // Without the key the forgery holds, but does not lead to the kept head.
        let kept = head_of(chain(&wires, None).last().unwrap());
        let mut verifier = Verifier::new(None, None);
        for row in &rows {
            verifier.check(&row.link()).unwrap();
        }
        prop_assert_eq!(verifier.ends_at(&kept).unwrap_err().why, Why::Head);
    }

    #[test]
    fn a_loss_is_found_in_its_place(
        wires in wires(), at in any::<prop::sample::Index>(), renumber in any::<bool>(),
        keyed in any::<bool>(),
    ) {
        let key = keyed.then(|| key(1));
        let mut rows = chain(&wires, key.as_ref());
        let kept = head_of(rows.last().unwrap());
        let at = at.index(rows.len());
        rows.remove(at);
        if renumber {
            for row in &mut rows[at..] {
                row.seq -= 1;
            }
        }
        let mut verifier = Verifier::new(None, key.as_ref());
        let all = rows.iter().try_for_each(|row| verifier.check(&row.link()));
        let found = all.and_then(|()| verifier.ends_at(&kept)).unwrap_err();
        prop_assert_eq!(found.seq, at as u64 + 1);
    }

    #[test]
    fn an_insertion_is_found_at_or_right_after_its_place(
        wires in wires(), at in any::<prop::sample::Index>(), renumber in any::<bool>(),
        keyed in any::<bool>(),
    ) {
        let key = keyed.then(|| key(1));
        let mut rows = chain(&wires, key.as_ref());
        let kept = head_of(rows.last().unwrap());
        let at = at.index(rows.len() + 1);
        let before = at.checked_sub(1).map(|before| head_of(&rows[before]));
        // The attacker links the forged row properly, but has no key.
        let forged = Row::of(append(before.as_ref(), "forged", None), "forged");
        rows.insert(at, forged);
        if renumber {
            for row in &mut rows[at + 1..] {
                row.seq += 1;
            }
        }
        let mut verifier = Verifier::new(None, key.as_ref());
        let all = rows.iter().try_for_each(|row| verifier.check(&row.link()));
        let found = all.and_then(|()| verifier.ends_at(&kept)).unwrap_err().seq;
        let place = at as u64 + 1;
        if keyed {
            prop_assert_eq!(found, place);
        } else if at == wires.len() {
            prop_assert_eq!(found, kept.seq());
        } else {
            prop_assert_eq!(found, place + 1);
        }
    }

    #[test]
    fn a_new_order_is_found_at_its_first_place(
        wires in wires(), one in any::<prop::sample::Index>(), two in any::<prop::sample::Index>(),
        renumber in any::<bool>(), keyed in any::<bool>(),
    ) {
        let key = keyed.then(|| key(1));
        let mut rows = chain(&wires, key.as_ref());
        let (one, two) = (one.index(rows.len()), two.index(rows.len()));
        prop_assume!(one != two);
        rows.swap(one, two);
        if renumber {
            let (left, right) = (rows[one].seq, rows[two].seq);
            rows[one].seq = right;
            rows[two].seq = left;
        }
        prop_assert_eq!(check(&rows, key.as_ref()).unwrap_err().seq, one.min(two) as u64 + 1);
    }
}
