//! The Merkle tree over a shard's ledger, as far as it must be kept to grow: its frontier.
//!
//! RFC 6962, section 2.1: leaf = SHA-256(0x00 | row), node = SHA-256(0x01 | left | right), and the tree of n leaves
//! splits at the largest power of two below n. The frontier holds the roots of the full subtrees that n's binary digits
//! name, largest first; the root is their fold from the right.

use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// A tree that can grow and tell its root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// From what a row keeps; nothing if the numbers do not fit together.
    pub fn restore(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    pub fn push(&mut self, leaf: Hash) {
        let mut grown = leaf;
        let mut rest = self.size;
        while rest & 1 == 1 {
            let left = self.subtrees.pop().expect("invariant: a subtree for every binary digit of the size");
            grown = node_hash(&left, &grown);
            rest >>= 1;
        }
        self.subtrees.push(grown);
        self.size += 1;
    }

    /// The root; of an empty tree the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        match subtrees.next() {
            None => Sha256::digest([]).into(),
            Some(smallest) => subtrees.fold(*smallest, |right, left| node_hash(left, &right)),
        }
    }
}

pub fn leaf_hash(row: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(row).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The definition, word by word.
    fn reference_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                node_hash(&reference_root(&leaves[..split]), &reference_root(&leaves[split..]))
            }
        }
    }

    #[test]
    fn equals_the_definition_at_every_size_and_over_restores() {
        let leaves = (0..200_u32).map(|i| leaf_hash(&i.to_be_bytes())).collect::<Vec<_>>();
        let mut frontier = Frontier::default();
        for size in 0..leaves.len() {
            assert_eq!(frontier.root(), reference_root(&leaves[..size]), "size {size}");
            frontier = Frontier::restore(size as u64, frontier.subtrees().to_vec()).unwrap();
            frontier.push(leaves[size]);
        }
        assert_eq!(Frontier::restore(3, vec![[0; 32]]), None);
    }

    proptest::proptest! {
        #[test]
        fn equals_an_independent_implementation(rows: Vec<Vec<u8>>) {
            let mut oracle = ct_merkle::mem_backed_tree::MemoryBackedTree::<Sha256, Vec<u8>>::new();
            let mut frontier = Frontier::default();
            for row in rows {
                frontier.push(leaf_hash(&row));
                oracle.push(row);
                let expected = oracle.root();
                proptest::prop_assert_eq!(&frontier.root()[..], &expected.as_bytes()[..]);
            }
        }
    }

    #[test]
    fn equals_known_roots() {
        // RFC 6962's empty root, and the leaf hash of the empty string, as Certificate Transparency's tests have them.
        assert_eq!(
            hex(&Frontier::default().root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(hex(&leaf_hash(b"")), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
