use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4;

fn table(salt: u8) -> BlockTable {
    BlockTable::new(ChainHash::root(&[salt; 32]), 64)
}

fn filled(pool: &mut KvPool, salt: u8, tokens: &[u32]) -> BlockTable {
    let mut table = table(salt);
    pool.match_prefix(&mut table, tokens);
    assert!(pool.grow(&mut table, tokens.len()));
    pool.name_full_blocks(&mut table, tokens, tokens.len());
    table
}

#[test]
fn a_released_prefix_is_found_again_but_never_the_last_token() {
    let mut pool = KvPool::new(8, BLOCK);
    let tokens: Vec<u32> = (0..8).collect();
    let mut first = filled(&mut pool, 1, &tokens);
    let blocks = first.blocks().to_vec();
    pool.release(&mut first);
    assert_eq!(pool.counts(), BlockCounts { free: 6, cached: 2, in_use: 0 });

    let mut same = table(1);
    assert_eq!(pool.match_prefix(&mut same, &tokens), 4, "the second block holds the last token");
    assert_eq!(same.blocks(), &blocks[..1]);
    let mut longer = table(1);
    assert_eq!(pool.match_prefix(&mut longer, &[&tokens[..], &[9]].concat()), 8);
    let mut stranger = table(2);
    assert_eq!(pool.match_prefix(&mut stranger, &tokens), 0, "another tenant sees nothing");
    pool.check([&same, &longer].into_iter());
}

#[test]
fn a_name_alone_is_no_hit() {
    let mut pool = KvPool::new(4, BLOCK);
    let mut first = filled(&mut pool, 1, &[1, 2, 3, 4, 5]);
    // As if two texts had one hash.
    let head = first.blocks()[0] as usize;
    pool.tokens[head * BLOCK] = 7;
    let mut second = table(1);
    assert_eq!(pool.match_prefix(&mut second, &[1, 2, 3, 4, 5]), 0);
    pool.release(&mut first);
}

#[test]
fn tails_are_given_up_before_shared_heads() {
    let mut pool = KvPool::new(4, BLOCK);
    let tokens: Vec<u32> = (0..17).collect();
    let mut whole = filled(&mut pool, 1, &tokens[..16]);
    pool.release(&mut whole);
    // Two blocks are taken for something else: the two last of the chain must go.
    let mut other = table(2);
    assert!(pool.grow(&mut other, 2 * BLOCK));
    let mut again = table(1);
    assert_eq!(pool.match_prefix(&mut again, &tokens), 8);
    pool.check([&other, &again].into_iter());
}

#[test]
fn equal_blocks_computed_side_by_side_are_folded() {
    let mut pool = KvPool::new(8, BLOCK);
    let tokens: Vec<u32> = (0..8).collect();
    let (mut a, mut b) = (table(1), table(1));
    assert!(pool.grow(&mut a, 8) && pool.grow(&mut b, 8));
    assert_eq!(pool.counts().in_use, 4);
    pool.name_full_blocks(&mut a, &tokens, 8);
    pool.name_full_blocks(&mut b, &tokens, 8);
    assert_eq!(a.blocks(), b.blocks());
    assert_eq!(pool.counts(), BlockCounts { free: 6, cached: 0, in_use: 2 });
    pool.check([&a, &b].into_iter());
}

#[test]
fn out_of_blocks_is_an_answer() {
    let mut pool = KvPool::new(2, BLOCK);
    let mut a = table(1);
    assert!(!pool.grow(&mut a, 12));
    assert_eq!(pool.covered(&a), 8);
    assert_eq!(pool.available(), 0);
    pool.release(&mut a);
    assert_eq!(pool.counts(), BlockCounts { free: 2, cached: 0, in_use: 0 });
}

/// What may be asked of the pool by many sequences.
#[derive(Clone, Debug)]
enum Action {
    Start { salt: u8, tokens: Vec<u32> },
    Compute { which: usize, tokens: usize },
    Release { which: usize },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..2u8, prop::collection::vec(0..2u32, 1..20)).prop_map(|(salt, tokens)| Action::Start { salt, tokens }),
        (0..8usize, 1..9usize).prop_map(|(which, tokens)| Action::Compute { which, tokens }),
        (0..8usize).prop_map(|which| Action::Release { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The obvious model: what was written into each position of each block. Whatever the pool hands out as a known
    /// prefix must hold exactly what this sequence would have written itself.
    #[test]
    fn a_hit_holds_what_would_have_been_computed(actions in prop::collection::vec(action(), 1..80)) {
        let mut pool = KvPool::new(10, BLOCK);
        let mut written: HashMap<(BlockId, usize), (u8, Vec<u32>)> = HashMap::new();
        let mut live: Vec<(u8, Vec<u32>, usize, BlockTable)> = Vec::new();
        for action in actions {
            match action {
                Action::Start { salt, tokens } => {
                    let mut table = table(salt);
                    let computed = pool.match_prefix(&mut table, &tokens);
                    prop_assert!(computed < tokens.len() && computed.is_multiple_of(BLOCK));
                    for position in 0..computed {
                        let place = (table.blocks()[position / BLOCK], position % BLOCK);
                        prop_assert_eq!(&written[&place], &(salt, tokens[..=position].to_vec()));
                    }
                    live.push((salt, tokens, computed, table));
                }
                Action::Compute { which, tokens: count } if !live.is_empty() => {
                    let which = which % live.len();
                    let (salt, tokens, computed, table) = &mut live[which];
                    let end = (*computed + count).min(tokens.len());
                    if pool.grow(table, end) {
                        for position in *computed..end {
                            let place = (table.blocks()[position / BLOCK], position % BLOCK);
                            written.insert(place, (*salt, tokens[..=position].to_vec()));
                        }
                        *computed = end;
                        pool.name_full_blocks(table, tokens, end);
                    }
                }
                Action::Release { which } if !live.is_empty() => {
                    let which = which % live.len();
                    let (_, _, _, mut table) = live.swap_remove(which);
                    pool.release(&mut table);
                }
                _ => {}
            }
            pool.check(live.iter().map(|(_, _, _, table)| table));
            for (salt, tokens, computed, table) in &live {
                for position in 0..*computed {
                    let place = (table.blocks()[position / BLOCK], position % BLOCK);
                    prop_assert_eq!(&written[&place], &(*salt, tokens[..=position].to_vec()));
                }
            }
        }
    }
}
