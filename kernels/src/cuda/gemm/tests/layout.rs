//! Without a device.

use super::*;

const H200: Machine = Machine { multiprocessors: 132, shared_bytes: 232_448, wgmma: true };

#[test]
fn packed_places_are_a_permutation_and_swizzled() {
    let shape = GemmShape { outputs: 80, inputs: 144, gated: false, numbers: Numbers::Bf16 };
    assert_eq!((shape.padded_outputs(), shape.k_tiles(), shape.packed_bytes()), (128, 3, 2 * 3 * 8192));
    let mut seen = vec![false; shape.packed_bytes() / 2];
    for n in 0..128 {
        for k in 0..192 {
            let offset = shape.packed_offset(n, k);
            // The formula of the layout, written by bits: 16-byte piece = k bits 3–5 xor n bits 0–2.
            let piece = ((k >> 3) & 7) ^ (n & 7);
            let expected = ((n >> 6) * 3 + (k >> 6)) << 13 | (n & 63) << 7 | piece << 4 | (k & 7) << 1;
            assert_eq!(offset, expected, "({n}, {k})");
            assert!(!std::mem::replace(&mut seen[offset / 2], true), "({n}, {k}) shares its place");
        }
    }
    assert!(seen.into_iter().all(|seen| seen));
}

#[test]
fn gates_and_ups_alternate_in_eights() {
    let rows: Vec<_> = (0..64).map(|row| gated_source(row, 24)).collect();
    assert_eq!(rows[..8], [0, 1, 2, 3, 4, 5, 6, 7].map(Some));
    assert_eq!(rows[8..16], [24, 25, 26, 27, 28, 29, 30, 31].map(Some));
    assert_eq!(rows[40..48], [40, 41, 42, 43, 44, 45, 46, 47].map(Some));
    assert!(rows[48..].iter().all(Option::is_none));
    assert_eq!(GemmShape { outputs: 48, inputs: 64, gated: true, numbers: Numbers::Bf16 }.padded_outputs(), 128);
}

/// The kernel's share of a block, as `Items::get` computes it.
fn stream_items(geometry: &Geometry, block: u32) -> Vec<(u32, u32)> {
    let [blocks, ..] = geometry.grid;
    let low = geometry.units * block / blocks;
    let share = geometry.units * (block + 1) / blocks - low;
    (0..geometry.passes)
        .map(|pass| {
            let (begin, end) = (share * pass / geometry.passes, share * (pass + 1) / geometry.passes);
            ((low + begin) * geometry.unit_rows, (end - begin) * geometry.unit_rows)
        })
        .collect()
}

#[test]
fn every_geometry_takes_every_output_once_and_fits() {
    let sizes = [64, 128, 896, 1024, 1152, 2048, 4096, 4864, 6144, 11008, 14336, 28672, 128_256, 151_936];
    for outputs in sizes {
        for inputs in [16, 64, 896, 4096, 14336] {
            let forms = [(false, Numbers::Bf16), (true, Numbers::Bf16), (false, Numbers::Fp8), (true, Numbers::Fp8)];
            for (gated, numbers) in forms
                .into_iter()
                .filter(|(_, numbers)| inputs % (64 * numbers.depth()) == 0 || *numbers == Numbers::Bf16)
            {
                let shape = GemmShape { outputs, inputs, gated, numbers };
                for rows in [1, 2, 8, 9, 16, 31, 33, 64, 65, 128, 200, 256, 512, 1024, 2048, 8192] {
                    let geometry = Geometry::choose(shape, rows, H200, &Tuning::default());
                    let what = format!("{shape:?} × {rows}: {geometry:?}");
                    assert!(geometry.shared + 256 <= H200.shared_bytes, "{what}");
                    assert!(geometry.stages >= 2 || geometry.stages as usize >= shape.k_tiles(), "{what}");
                    assert!((1..=16).contains(&geometry.stages), "{what}");
                    assert!([1, 2, 4].contains(&geometry.stage_k_tiles), "{what}");
                    assert!((geometry.stage_k_tiles as usize).is_multiple_of(numbers.depth()), "{what}");
                    assert!(shape.k_tiles().is_multiple_of(geometry.stage_k_tiles as usize), "{what}");
                    assert!(geometry.grid[0] <= 132 && geometry.grid[0].is_multiple_of(geometry.cluster), "{what}");
                    assert!(geometry.tokens / geometry.cluster >= 8, "{what}");
                    assert!(
                        geometry.pass_rows <= 64 * geometry.groups && geometry.pass_rows.is_multiple_of(8),
                        "{what}"
                    );
                    if geometry.stream {
                        assert!(rows as u32 <= geometry.tokens, "{what}");
                        let mut next = 0;
                        for (row0, rows) in (0..geometry.grid[0]).flat_map(|block| stream_items(&geometry, block)) {
                            assert!(row0 == next && rows <= geometry.pass_rows, "{what}: {row0} + {rows} after {next}");
                            next = row0 + rows;
                        }
                        assert_eq!(next as usize, shape.padded_outputs(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn few_tokens_are_streamed_by_nearly_all_multiprocessors() {
    for (outputs, inputs) in [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)] {
        let shape = GemmShape { outputs, inputs, gated: false, numbers: Numbers::Bf16 };
        for rows in [1, 8, 16, 32] {
            let geometry = Geometry::choose(shape, rows, H200, &Tuning::default());
            let most = geometry.units.div_ceil(geometry.grid[0]) * 132;
            assert!(geometry.stream, "{outputs} × {inputs}, {rows} rows: {geometry:?}");
            assert!(geometry.units * 100 >= most * 95, "{outputs} × {inputs}, {rows} rows: {geometry:?}");
        }
    }
}
