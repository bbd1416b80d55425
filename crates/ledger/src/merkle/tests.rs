use super::*;
use caracal_crypto::digest::hex_encode;
use proptest::prelude::*;

fn leaves(count: u64) -> Vec<Hash> {
    (0..count)
        .map(|n| leaf_hash(format!("event {n}").as_bytes()))
        .collect()
}

/// The definition of RFC 6962 §2.1, word for word.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => sha256(b""),
        [leaf] => *leaf,
        many => {
            let (left, right) = many.split_at(usize::try_from(split(many.len() as u64)).unwrap());
            node_hash(&mth(left), &mth(right))
        }
    }
}

fn hash_of(leaves: &[Hash], range: &Range<u64>) -> Hash {
    mth(&leaves[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
}

fn hashes(leaves: &[Hash], ranges: &[Range<u64>]) -> Vec<Hash> {
    ranges.iter().map(|range| hash_of(leaves, range)).collect()
}

fn tree(leaves: &[Hash]) -> Tree {
    let mut tree = Tree::default();
    for leaf in leaves {
        tree.append(*leaf);
    }
    tree
}

/// The test tree that implementations of RFC 6962 share: leaves and roots.
#[test]
fn the_roots_of_the_known_tree_are_reproduced() {
    let inputs: [&[u8]; 8] = [
        b"",
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[
            0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
            0x6e, 0x6f,
        ],
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Tree::default();
    assert_eq!(hex_encode(&tree.root()), roots[0]);
    for (input, root) in inputs.iter().zip(&roots[1..]) {
        tree.append(leaf_hash(input));
        assert_eq!(hex_encode(&tree.root()), *root, "{}", tree.size());
    }
}

#[test]
fn every_small_tree_proves_everything_about_itself_and_nothing_else() {
    let all = leaves(33);
    for size in 1..=33u64 {
        let root = mth(&all[..usize::try_from(size).unwrap()]);
        assert_eq!(
            tree(&all[..usize::try_from(size).unwrap()]).root(),
            root,
            "{size}"
        );
        for index in 0..size {
            let leaf = all[usize::try_from(index).unwrap()];
            let proof = hashes(&all, &inclusion(index, size));
            assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()));
            for other in (0..=size).filter(|other| *other != index) {
                let moved = verify_inclusion(&leaf, other, size, &proof, &root);
                assert!(moved.is_err(), "{index} as {other} of {size}");
            }
        }
        for old in 0..=size {
            let old_root = mth(&all[..usize::try_from(old).unwrap()]);
            let proof = hashes(&all, &consistency(old, size));
            let verified = verify_consistency((old, &old_root), (size, &root), &proof);
            assert_eq!(verified, Ok(()), "{old} of {size}");
        }
    }
    assert_eq!(inclusion(0, 0), []);
    assert_eq!(inclusion(5, 5), []);
    assert_eq!(consistency(6, 5), []);
}

#[test]
fn a_kept_tree_needs_as_many_hashes_as_its_size_says() {
    let kept = tree(&leaves(13));
    assert_eq!(kept.peaks().len(), 3);
    assert_eq!(Tree::stored(13, kept.peaks().to_vec()), Some(kept.clone()));
    assert_eq!(Tree::stored(12, kept.peaks().to_vec()), None);
    assert_eq!(Tree::stored(0, Vec::new()), Some(Tree::default()));
}

proptest! {
    /// However the ledger was changed after a root was kept, no proof for the old root is found in
    /// the new ledger.
    #[test]
    fn a_changed_past_has_no_consistency_proof(size in 2u64..80, grown in 0u64..40, change in 0u8..4,
                                               at in any::<prop::sample::Index>()) {
        let honest = leaves(size);
        let kept = mth(&honest);
        let mut other = leaves(size + grown);
        let at = at.index(usize::try_from(size).unwrap());
        match change {
            0 => other[at] = leaf_hash(b"another event"),
            1 => drop(other.remove(at)),
            2 => other.insert(at, leaf_hash(b"one more")),
            _ if at + 1 < usize::try_from(size).unwrap() => other.swap(at, at + 1),
            _ => other.swap(0, at),
        }
        let new = other.len() as u64;
        prop_assume!(mth(&other[..usize::try_from(size.min(new)).unwrap()]) != kept || new < size);
        let proof = hashes(&other, &consistency(size, new));
        prop_assert!(verify_consistency((size, &kept), (new, &mth(&other)), &proof).is_err());
    }

    #[test]
    fn a_proof_with_any_bit_changed_is_refused(size in 2u64..300, at in any::<prop::sample::Index>(),
                                               hash in any::<prop::sample::Index>(), bit in 0usize..256) {
        let all = leaves(size);
        let root = mth(&all);
        let index = at.index(usize::try_from(size).unwrap());
        let mut proof = hashes(&all, &inclusion(index as u64, size));
        let leaf = all[index];
        prop_assert_eq!(verify_inclusion(&leaf, index as u64, size, &proof, &root), Ok(()));
        let mut longer = proof.clone();
        longer.push(root);
        prop_assert!(verify_inclusion(&leaf, index as u64, size, &longer, &root).is_err());
        prop_assert!(verify_inclusion(&leaf, index as u64, size, &proof[1..], &root).is_err());
        let hash = hash.index(proof.len());
        proof[hash][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(verify_inclusion(&leaf, index as u64, size, &proof, &root).is_err());

        let old = index as u64;
        prop_assume!(old > 0);
        let old_root = mth(&all[..index]);
        let mut proof = hashes(&all, &consistency(old, size));
        prop_assert_eq!(verify_consistency((old, &old_root), (size, &root), &proof), Ok(()));
        let hash = hash % proof.len();
        proof[hash][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(verify_consistency((old, &old_root), (size, &root), &proof).is_err());
    }

    #[test]
    fn growing_a_kept_tree_is_building_it_anew(kept in 0u64..200, grown in 0u64..200) {
        let all = leaves(kept + grown);
        let (before, after) = all.split_at(usize::try_from(kept).unwrap());
        let kept = tree(before);
        let mut again = Tree::stored(kept.size(), kept.peaks().to_vec()).unwrap();
        after.iter().for_each(|leaf| again.append(*leaf));
        prop_assert_eq!(again.root(), mth(&all));
    }

    #[test]
    fn no_sizes_make_a_verifier_panic(index in any::<u64>(), size in any::<u64>(), count in 0usize..70) {
        let proof = vec![[7; 32]; count];
        let _ = verify_inclusion(&[1; 32], index, size, &proof, &[2; 32]);
        let _ = verify_consistency((index, &[1; 32]), (size, &[2; 32]), &proof);
        let _ = inclusion(index, size);
        let _ = consistency(index, size);
        let _ = nodes(&(0..size));
    }
}
