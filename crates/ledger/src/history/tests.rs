//! Each way of tampering, found and located with one checkpoint that was kept elsewhere.

use super::*;
use crate::chain::{Link, append};
use crate::merkle::consistency;
use crate::tile::{Growth, Tiles};
use proptest::prelude::*;

#[derive(Clone)]
struct Row {
    wire: String,
    link: Link,
}

impl Row {
    fn stored(&self) -> StoredLink<'_> {
        StoredLink {
            seq: self.link.seq,
            wire: &self.wire,
            content_sha256: &self.link.content_sha256,
            chain_hash: &self.link.chain_hash,
            chain_hmac: &self.link.chain_hmac,
        }
    }
}

/// A chain as the deployment makes it, or as somebody makes it anew who can write every row.
fn chained<S: AsRef<str>>(wires: &[S]) -> Vec<Row> {
    let mut head = None;
    let mut row = |wire: &S| {
        let link = append(head.as_ref(), wire.as_ref(), None);
        head = Some(link.head().clone());
        Row {
            wire: wire.as_ref().to_owned(),
            link,
        }
    };
    wires.iter().map(&mut row).collect()
}

fn wires(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("event {n}")).collect()
}

fn tree(rows: &[Row]) -> Tree {
    let mut tree = Tree::default();
    rows.iter()
        .for_each(|row| tree.append(leaf_hash(row.wire.as_bytes())));
    tree
}

fn signed(rows: &[Row], size: usize) -> Checkpoint {
    let rows = &rows[..size];
    let head = rows
        .last()
        .map_or(Head::GENESIS, |row| row.link.head().clone());
    checkpoint_of("log/z1".to_owned(), &head, &tree(rows))
}

fn verify(rows: &[Row], kept: &[&Checkpoint]) -> Result<Sound, Unsound> {
    let mut history = History::new(None, None)?;
    for checkpoint in kept {
        history.expect(Kept::from((*checkpoint).clone()))?;
    }
    rows.iter()
        .try_for_each(|row| history.check(&row.stored()).map(drop))?;
    history.finish()
}

fn found(seq: u64, flaw: Flaw) -> Result<Sound, Unsound> {
    Err(Unsound { seq, flaw })
}

#[test]
fn what_was_signed_holds_and_says_how_much_of_it_is_signed() {
    let rows = chained(&wires(20));
    let (old, new) = (signed(&rows, 8), signed(&rows, 16));
    let sound = verify(&rows, &[&old, &new]).unwrap();
    assert_eq!(sound.signed, Some(new));
    assert_eq!(sound.to_string(), "20 events, the first 16 of them signed");
    assert_eq!(
        verify(&rows, &[]).unwrap().to_string(),
        "20 events, none of them signed"
    );
    let whole = signed(&rows, 20);
    assert_eq!(
        verify(&rows, &[&whole]).unwrap().to_string(),
        "20 events, all of them signed"
    );
}

#[test]
fn what_the_chain_shows_is_located_to_the_event() {
    let rows = chained(&wires(20));
    let kept = signed(&rows, 16);
    let with = |change: fn(&mut Vec<Row>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        verify(&rows, &[&kept])
    };
    let flip = |rows: &mut Vec<Row>| rows[6].wire.push('!');
    assert_eq!(with(flip), found(7, Flaw::Chain(Why::Content)));
    let drop_one = |rows: &mut Vec<Row>| drop(rows.remove(6));
    assert_eq!(with(drop_one), found(7, Flaw::Chain(Why::Gap { found: 8 })));
    let insert = |rows: &mut Vec<Row>| rows.insert(6, rows[3].clone());
    assert_eq!(with(insert), found(7, Flaw::Chain(Why::Gap { found: 4 })));
    let reorder = |rows: &mut Vec<Row>| rows.swap(6, 7);
    assert_eq!(with(reorder), found(7, Flaw::Chain(Why::Gap { found: 8 })));
    let cut_first = |rows: &mut Vec<Row>| drop(rows.remove(0));
    assert_eq!(
        with(cut_first),
        found(1, Flaw::Chain(Why::Gap { found: 2 }))
    );
    let truncate = |rows: &mut Vec<Row>| rows.truncate(12);
    assert_eq!(with(truncate), found(13, Flaw::Cut { size: 16 }));
    assert_eq!(with(Vec::clear), found(1, Flaw::Cut { size: 16 }));
}

#[test]
fn what_was_chained_anew_is_located_between_two_checkpoints() {
    let honest = chained(&wires(20));
    let (before, after) = (signed(&honest, 4), signed(&honest, 16));
    let anew = |change: fn(&mut Vec<String>)| {
        let mut wires = wires(20);
        change(&mut wires);
        verify(&chained(&wires), &[&before, &after])
    };
    let located = found(5, Flaw::Signed { size: 16 });
    assert_eq!(anew(|wires| wires[6].push('!')), located);
    assert_eq!(anew(|wires| drop(wires.remove(6))), located);
    assert_eq!(anew(|wires| wires.insert(6, "more".to_owned())), located);
    assert_eq!(anew(|wires| wires.swap(6, 7)), located);
    let month = |wires: &mut Vec<String>| wires[4..16].iter_mut().for_each(|wire| wire.push('!'));
    assert_eq!(anew(month), located);
    let first = |wires: &mut Vec<String>| drop(wires.remove(0));
    assert_eq!(anew(first), found(1, Flaw::Signed { size: 4 }));
    // After the last checkpoint nothing is signed yet.
    assert!(anew(|wires| wires[18].push('!')).is_ok());
}

#[test]
fn a_checkpoint_binds_the_chain_as_well() {
    let rows = chained(&wires(8));
    let mut kept = signed(&rows, 8);
    kept.chain_hash = Some([9; 32]);
    assert_eq!(verify(&rows, &[&kept]), found(8, Flaw::Chain(Why::Head)));
}

#[test]
fn two_signed_histories_cannot_both_hold() {
    let rows = chained(&wires(8));
    let mut other = wires(8);
    other[2].push('!');
    let other = signed(&chained(&other), 8);
    let both = verify(&rows, &[&signed(&rows, 8), &other]);
    assert_eq!(both, found(9, Flaw::Signed { size: 8 }));
}

/// A ledger whose first events are gone, with what the store has of them.
struct Retained {
    rows: Vec<Row>,
    floor: Floor,
    tiles: Tiles,
}

fn retained(rows: &[Row], dropped: usize) -> Retained {
    let mut growth = Growth::from(0, &Tiles::default()).unwrap();
    rows.iter()
        .for_each(|row| growth.append(leaf_hash(row.wire.as_bytes())));
    let tiles: Tiles = growth.into_changed().into_iter().collect();
    let head = rows[dropped - 1].link.head();
    let floor = Floor::new(head, &tiles.tree(dropped as u64).unwrap());
    Retained {
        rows: rows[dropped..].to_vec(),
        floor,
        tiles,
    }
}

impl Retained {
    fn proof(&self, size: u64) -> Option<Vec<Hash>> {
        let ranges = consistency(size, self.floor.size);
        Some(
            ranges
                .iter()
                .map(|range| self.tiles.hash(range).unwrap())
                .collect(),
        )
    }

    fn verify(&self, own: &[&Checkpoint], kept: &[&Checkpoint]) -> Result<Sound, Unsound> {
        let mut history = History::new(Some(&self.floor), None)?;
        for checkpoint in kept {
            history.expect(Kept::from((*checkpoint).clone()))?;
        }
        for checkpoint in own {
            let proof = (checkpoint.size < self.floor.size).then(|| self.proof(checkpoint.size));
            history.expect(Kept {
                checkpoint: (*checkpoint).clone(),
                proof: proof.flatten(),
                named: None,
            })?;
        }
        self.rows
            .iter()
            .try_for_each(|row| history.check(&row.stored()).map(drop))?;
        history.finish()
    }
}

#[test]
fn what_is_left_after_retention_still_verifies_against_any_checkpoint() {
    let rows = chained(&wires(20));
    let left = retained(&rows, 11);
    let (old, floor, new) = (signed(&rows, 6), signed(&rows, 11), signed(&rows, 17));
    for kept in [&old, &floor, &new] {
        let sound = left.verify(&[&old, &floor, &new], &[kept]).unwrap();
        let said = "20 events, the first 11 no longer kept, the first 17 of them signed";
        assert_eq!(sound.to_string(), said);
    }
    let mut forged = old.clone();
    forged.root = [9; 32];
    assert_eq!(
        left.verify(&[&old, &new], &[&forged]),
        found(1, Flaw::Unproven { size: 6 })
    );
    assert_eq!(
        left.verify(&[&new], &[&old]),
        found(1, Flaw::Unproven { size: 6 })
    );
    assert_eq!(
        left.verify(&[&forged], &[]),
        found(1, Flaw::Unproven { size: 6 })
    );
}

#[test]
fn a_floor_that_stands_for_other_events_shows_at_the_next_checkpoint() {
    let rows = chained(&wires(20));
    let kept = signed(&rows, 17);
    let mut other = wires(20);
    other[2].push('!');
    let other = retained(&chained(&other), 11);
    assert_eq!(
        other.verify(&[], &[&kept]),
        found(1, Flaw::Signed { size: 17 })
    );
    let mut unusable = retained(&rows, 11);
    unusable.floor.tree.pop();
    assert_eq!(unusable.verify(&[], &[]), found(11, Flaw::Floor));
    let mut shifted = retained(&rows, 11);
    shifted.floor.chain_hash = "00".repeat(32);
    assert_eq!(
        shifted.verify(&[], &[&kept]),
        found(12, Flaw::Chain(Why::Link))
    );
}

proptest! {
    /// Whatever sizes are kept, a ledger that grew honestly agrees with all of them, and one that
    /// was changed below the largest of them disagrees.
    #[test]
    fn any_edit_or_omission_below_a_kept_checkpoint_is_found(
        count in 2usize..60, sizes in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        at in any::<prop::sample::Index>(), kind in 0u8..4,
    ) {
        let honest = chained(&wires(count));
        let kept: Vec<_> = sizes.iter().map(|size| signed(&honest, 1 + size.index(count))).collect();
        let kept: Vec<_> = kept.iter().collect();
        prop_assert!(verify(&honest, &kept).is_ok());
        let largest = kept.iter().map(|kept| kept.size as usize).max().unwrap();
        let at = at.index(largest);
        let mut other = wires(count);
        match kind {
            0 => other[at].push('!'),
            1 => drop(other.remove(at)),
            2 => other.insert(at, "more".to_owned()),
            _ => other.truncate(at),
        }
        let found = verify(&chained(&other), &kept).unwrap_err();
        // What was chained anew and is too short is missed at its end.
        let located = found.seq <= at as u64 + 1 || matches!(found.flaw, Flaw::Cut { .. });
        prop_assert!(located, "{found} for {}", at + 1);
    }
}
