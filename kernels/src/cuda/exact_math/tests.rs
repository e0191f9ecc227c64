//! The exact functions of `common.cuh` against those of `protocol`, bit for bit: on a GPU, and under the emulator.

use std::hint::black_box;

use polylink_protocol::exact_math::{exp, f32_to_bf16, gelu_tanh, ln, silu, soft_cap, tanh};
use polylink_protocol::noise::{gumbel_from_bits, philox_4x32_10};

use super::driver::{Device, DevicePtr, Launch};

#[repr(C)]
#[derive(Clone, Copy)]
struct Args {
    inputs: DevicePtr,
    outputs: DevicePtr,
    key: u64,
    count: u32,
    function: u32,
}

const KEY: u64 = 0x0123_4567_89ab_cdef;
const NAMES: [&str; 9] = ["exp", "ln", "silu", "tanh", "gelu_tanh", "soft_cap", "bf16", "gumbel", "philox"];

fn right(function: usize, bits: u32, index: u32) -> u32 {
    let x = black_box(f32::from_bits(bits));
    match function {
        0 => exp(x).to_bits(),
        1 => ln(x).to_bits(),
        2 => silu(x).to_bits(),
        3 => tanh(x).to_bits(),
        4 => gelu_tanh(x).to_bits(),
        5 => soft_cap(x, 30.0).to_bits(),
        6 => u32::from(f32_to_bf16(x)),
        7 => gumbel_from_bits(bits).to_bits(),
        _ => philox_4x32_10([bits, index, 0, 0], KEY)[index as usize % 4],
    }
}

/// Inputs of a function: bits that are spread over all f32, and over those that occur; where they do not fit, others.
fn inputs(function: usize, count: u32) -> Vec<u32> {
    let special =
        [0.0f32, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, 1e-45, -1e-45, 88.7, -87.3, -103.9, 104.5, -104.5, 0.625];
    let spread = (0..count).map(|index| {
        let bits = index.wrapping_mul(0x9e37_79b1) ^ index >> 3;
        match function {
            7 | 8 => bits,
            // Positive and normal.
            1 => (bits & 0x7fff_ffff).clamp(0x0080_0000, 0x7f7f_ffff),
            // Every second one within ±128.
            _ if index % 2 == 0 => ((bits as i32) as f32 / 16_777_216.0).to_bits(),
            _ => {
                let finite = if bits & 0x7f80_0000 == 0x7f80_0000 { bits & !0x4000_0000 } else { bits };
                // Squares that overflow are met by no logit and no activation.
                if matches!(function, 3..=5) { finite & !0x2000_0000 } else { finite }
            }
        }
    });
    let special = special.into_iter().filter(|x| function != 1 || *x >= f32::MIN_POSITIVE).map(f32::to_bits);
    special.chain(spread).collect()
}

fn compare(function: usize, inputs: &[u32], outputs: &[u32], wrong: &mut Vec<String>) {
    let mut differ = 0;
    for (index, (&bits, &got)) in inputs.iter().zip(outputs).enumerate() {
        let right = right(function, bits, index as u32);
        let nan = |bits: u32| function < 6 && f32::from_bits(bits).is_nan();
        if got != right && !(nan(got) && nan(right)) {
            differ += 1;
            if differ <= 3 {
                let x = f32::from_bits(bits);
                wrong
                    .push(format!("{}({x:e}, {bits:#010x}): expected {right:#010x}, got {got:#010x}", NAMES[function]));
            }
        }
    }
    println!("{}: {differ} of {} differ", NAMES[function], inputs.len());
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn the_emulated_functions_have_the_cpu_s_bits() {
    let Some(emulated) = super::emulated::Emulated::load("exact_math") else { return };
    let mut wrong = Vec::new();
    for function in 0..NAMES.len() {
        let inputs = inputs(function, 200_000);
        let mut outputs = vec![u32::MAX; inputs.len()];
        let (input, output) = (inputs.as_ptr() as u64, outputs.as_mut_ptr() as u64);
        let count = inputs.len() as u32;
        let args = Args { inputs: input, outputs: output, key: KEY, count, function: function as u32 };
        // SAFETY: both arrays have `count` words.
        unsafe { emulated.launch(0, [count.div_ceil(256), 1, 1], 256, &args) };
        compare(function, &inputs, &outputs, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_functions_on_a_gpu_have_the_cpu_s_bits() {
    let Some(device) = Device::for_tests() else { return };
    let kernel = device.function("exact_math", "exact_math").unwrap();
    let mut wrong = Vec::new();
    for function in 0..NAMES.len() {
        let inputs = inputs(function, 4_000_000);
        let count = inputs.len() as u32;
        let (input, output) = (device.from_slice(&inputs).unwrap(), device.alloc(4 * inputs.len()).unwrap());
        output.fill(0xff).unwrap();
        let args = Args { inputs: input.ptr(), outputs: output.ptr(), key: KEY, count, function: function as u32 };
        Launch::new(&kernel, [count.div_ceil(256), 1, 1], 256, 0, args).run(&device).unwrap();
        compare(function, &inputs, &output.read::<u32>(0, inputs.len()).unwrap(), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
