//! An uneven split of heads, MLP columns and vocabulary over devices changes no bit; a lost device is an error in time.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::{Duration, Instant};

use common::*;
use polylink_kernels::*;

/// Ranges of these lengths, one after the other.
fn consecutive(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut next = |length: &usize| {
        start += length;
        start - length..start
    };
    lengths.iter().map(&mut next).collect()
}

struct Plan {
    kv_heads: Vec<Range<usize>>,
    mlp: Vec<Range<usize>>,
    vocabulary: Vec<Range<usize>>,
}

impl Plan {
    fn rank(&self, rank: usize) -> Split {
        let Plan { kv_heads, mlp, vocabulary } = self;
        Split { rank, kv_heads: kv_heads.clone(), mlp: mlp.clone(), vocabulary: vocabulary.clone() }
    }
}

fn cpu(threads: usize) -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuOptions { threads: NonZeroUsize::new(threads), instructions: None }).unwrap())
}

/// A prefill of two sequences and one decode: the bits of both steps.
fn run(backend: &mut dyn Backend, kv: &KvSpec) -> Vec<Forward> {
    let chunk = |slot, first, length, wanted| Chunk { slot, first, tokens: tokens(slot, length, 199), wanted };
    let steps = [vec![chunk(0, 0, 290, 5), chunk(1, 0, 9, 9)], vec![chunk(0, 290, 1, 1), chunk(1, 9, 1, 1)]];
    steps.iter().map(|chunks| forward(backend, kv, chunks).unwrap()).collect()
}

fn check(plan: &Plan, dtype: Dtype, form: WeightForm, mixed: bool) {
    check_of(&TINY, plan, dtype, form, mixed);
}

fn check_of(sizes: &Sizes, plan: &Plan, dtype: Dtype, form: WeightForm, mixed: bool) {
    let whole_kv = sizes.kv();
    let mut whole = cpu(1);
    build(&mut *whole, sizes, dtype, form, &Split::whole(sizes), limits(), Box::new(Solo)).unwrap();
    let expected = run(&mut *whole, &whole_kv);
    let world = plan.mlp.len();
    let members = LocalCollective::group(world, Duration::from_secs(60));
    let results: Vec<Vec<Forward>> = std::thread::scope(|scope| {
        let threads: Vec<_> = members
            .into_iter()
            .map(|member| {
                scope.spawn(move || {
                    let split = plan.rank(member.rank());
                    // Different kinds of device: a plain one beside a packed one.
                    let mut backend =
                        if mixed && member.rank() == 1 { Box::new(ReferenceBackend::new()) } else { cpu(2) };
                    let kv = KvSpec { heads: split.kv_heads[split.rank].len(), ..whole_kv };
                    build(&mut *backend, sizes, dtype, form, &split, limits(), Box::new(member)).unwrap();
                    run(&mut *backend, &kv)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (rank, found) in results.iter().enumerate() {
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found.logits == expected.logits, "{form:?}: logits of rank {rank}, step {step}");
            assert_eq!(found.sketches, expected.sketches, "{form:?}: rank {rank}, step {step}");
        }
    }
}

#[test]
fn two_to_one_gives_the_unsharded_bits_in_every_form() {
    let plan =
        Plan { kv_heads: consecutive(&[2, 1]), mlp: consecutive(&[128, 64]), vocabulary: consecutive(&[133, 66]) };
    check(&plan, Dtype::F32, WeightForm::Float, false);
    check(&plan, Dtype::Bf16, WeightForm::Float, false);
    check(&plan, Dtype::Bf16, WeightForm::Q8_0, false);
    check(&plan, Dtype::Bf16, WeightForm::Q4_0, false);
    check(&plan, Dtype::Bf16, WeightForm::Bf16, false);
    check(&plan, Dtype::Bf16, WeightForm::AmxBf16, false);
}

/// The cuts lie within superblocks: each device has a part of some.
#[test]
fn superblocks_are_split_at_their_blocks() {
    let plan =
        Plan { kv_heads: consecutive(&[3, 1]), mlp: consecutive(&[448, 320]), vocabulary: consecutive(&[133, 66]) };
    for (dtype, form) in [
        (Dtype::Q4K, WeightForm::Stored),
        (Dtype::Q5K, WeightForm::Stored),
        (Dtype::Bf16, WeightForm::Q4K),
        (Dtype::Bf16, WeightForm::Q6K),
    ] {
        check_of(&SUPER, &plan, dtype, form, form == WeightForm::Stored);
    }
}

#[test]
fn one_to_two_and_three_unlike_devices_give_the_same_bits() {
    let plan =
        Plan { kv_heads: consecutive(&[1, 2]), mlp: consecutive(&[32, 160]), vocabulary: consecutive(&[1, 198]) };
    check(&plan, Dtype::Bf16, WeightForm::Q8_0, true);
    let three = Plan {
        kv_heads: consecutive(&[1, 1, 1]),
        mlp: consecutive(&[96, 32, 64]),
        vocabulary: consecutive(&[16, 100, 83]),
    };
    check(&three, Dtype::F32, WeightForm::Float, true);
}

#[test]
fn a_lost_peer_fails_the_step_in_time_and_the_backend_refuses_from_then_on() {
    let plan =
        Plan { kv_heads: consecutive(&[2, 1]), mlp: consecutive(&[128, 64]), vocabulary: consecutive(&[133, 66]) };
    for leaves_by_drop in [true, false] {
        let mut members = LocalCollective::group(2, Duration::from_millis(300));
        let lost = members.pop().unwrap();
        let mut backend = cpu(1);
        let collective = Box::new(members.pop().unwrap());
        build(&mut *backend, &TINY, Dtype::F32, WeightForm::Float, &plan.rank(0), limits(), collective).unwrap();
        let kept = (!leaves_by_drop).then_some(lost); // else dropped here
        let chunk = [Chunk { slot: 0, first: 0, tokens: vec![1, 2, 3], wanted: 1 }];
        let kv = KvSpec::f32(TINY.layers, 2, TINY.head_dim);
        let start = Instant::now();
        let refused = forward(&mut *backend, &kv, &chunk).err().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        match refused {
            BackendError::Lost(CollectiveError::PeerLost { rank: 1, .. }) => assert!(leaves_by_drop),
            BackendError::Lost(CollectiveError::Timeout { waited_ms: 300, .. }) => assert!(!leaves_by_drop),
            other => panic!("{other}"),
        }
        let again = forward(&mut *backend, &kv, &chunk).err().unwrap();
        assert!(matches!(again, BackendError::Poisoned), "{again}");
        drop(kept);
    }
}

#[test]
fn devices_that_run_different_plans_are_found_out() {
    let mut members = LocalCollective::group(2, Duration::from_secs(10));
    let (mut second, mut first) = (members.pop().unwrap(), members.pop().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut all = [0f32; 5];
            let _ = second.all_gather(&[1.0, 2.0, 3.0], &[2, 3], &mut all);
        });
        let mut all = [0f32; 4];
        let error = first.all_gather(&[1.0, 2.0], &[2, 2], &mut all).unwrap_err();
        assert_eq!(error, CollectiveError::Mismatch { rank: 1, expected: 2, found: 3 });
    });
}
