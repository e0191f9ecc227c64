//! Compiles the CUDA kernels (`cuda/*.cu`) to fatbins that the crate embeds.
//!
//! Without the feature `cuda` nothing happens here. With it, `nvcc` is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`,
//! `PATH` and `/usr/local/cuda`; without one the list of kernels is empty, which the CUDA backend reports when it is
//! asked for. The feature `cuda-aot` makes a missing `nvcc` an error. Neither links anything of CUDA.
//!
//! `x.cu` becomes code for sm_80 and sm_90 and PTX for newer devices; `x_sm90a.cu` (wgmma, bulk copies) becomes code for
//! sm_90a alone. What `ptxas` says of registers and spills is kept beside each fatbin as `x.ptxas`, for `cuda/check.sh`.
#![allow(missing_docs)] // a build script has no readers of its documentation but this page's

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Flags of every kernel. Contraction is off: a fused multiply-add is written where one is meant (`docs/numerics.md`).
const FLAGS: [&str; 6] = ["-fatbin", "-O3", "-std=c++17", "-fmad=false", "-Xptxas", "-v,-warn-spills"];
const PORTABLE: [&str; 2] = ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90,code=sm_90"];
const HOPPER: [&str; 1] = ["-gencode=arch=compute_90a,code=sm_90a"];

/// What to do about a missing toolkit.
const FIX: &str = "run kernels/cuda/toolkit.sh and set CUDA_HOME to the folder it prints, or install CUDA 13.0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=cuda");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = sources();
    let kernels = match Nvcc::find() {
        Some(nvcc) => compile_all(&nvcc, &sources, &out),
        None if env::var_os("CARGO_FEATURE_CUDA_AOT").is_some() => {
            println!("cargo::error=the feature cuda-aot needs nvcc, and none was found: {FIX}");
            Vec::new()
        }
        None => {
            println!("cargo::rerun-if-env-changed=PATH");
            println!("cargo::warning=no nvcc: the CUDA backend is built without its kernels and cannot run ({FIX})");
            Vec::new()
        }
    };
    fs::write(out.join("kernels.rs"), table(&kernels)).expect("OUT_DIR can be written");
}

/// The Rust source that embeds `stems`, aligned as the driver's own loaders would have them.
fn table(stems: &[String]) -> String {
    let mut text = String::from("#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n");
    for (index, stem) in stems.iter().enumerate() {
        let bytes = format!("*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))");
        writeln!(text, "static FATBIN_{index}: &Aligned<[u8]> = &Aligned({bytes});").expect("a string takes it");
    }
    if stems.is_empty() {
        text.clear();
    }
    text.push_str("/// Stem of the source and fatbin, in the order of names; empty if no nvcc was found.\n");
    text.push_str("pub(crate) static KERNELS: &[(&str, &[u8])] = &[");
    for (index, stem) in stems.iter().enumerate() {
        write!(text, "(\"{stem}\", &FATBIN_{index}.0), ").expect("a string takes it");
    }
    text.push_str("];\n");
    text
}

/// A compiler that answered.
struct Nvcc {
    program: PathBuf,
    /// Its own words about its version.
    version: String,
    compresses_for_size: bool,
}

impl Nvcc {
    fn find() -> Option<Self> {
        let beneath = |name: &str| env::var_os(name).map(|home| Path::new(&home).join("bin/nvcc"));
        let places = [
            env::var_os("NVCC").map(PathBuf::from),
            beneath("CUDA_HOME"),
            beneath("CUDA_PATH"),
            Some(PathBuf::from("nvcc")),
            Some(PathBuf::from("/usr/local/cuda/bin/nvcc")),
        ];
        places.into_iter().flatten().find_map(|program| {
            let version = answer(&program, "--version")?;
            let compresses_for_size = answer(&program, "--help")?.contains("--compress-mode");
            Some(Self { program, version, compresses_for_size })
        })
    }

    /// Every argument but the source and the output.
    fn arguments(&self, stem: &str) -> Vec<&'static str> {
        let targets: &[&str] = if stem.ends_with("_sm90a") { &HOPPER } else { &PORTABLE };
        let smaller: &[&str] =
            if self.compresses_for_size { &["--compress-mode=size"] } else { &["-Xfatbin", "-compress-all"] };
        [&FLAGS, targets, smaller].concat()
    }
}

/// Standard output of a program that ends well.
fn answer(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `cuda/*.cu`, by name.
fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir("cuda").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == "cu")).collect();
    found.sort();
    found
}

/// A source and every header of `cuda/` that it includes, directly or through others: name and text of each.
fn with_headers(source: &Path) -> String {
    let (mut names, mut text) = (vec![source.to_path_buf()], String::new());
    let mut at = 0;
    while let Some(path) = names.get(at).cloned() {
        at += 1;
        let found = read(&path);
        for line in found.lines().filter_map(|line| line.trim().strip_prefix("#include \"")) {
            let name = Path::new("cuda").join(line.trim_end_matches('"'));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let _ = writeln!(text, "{}:\n{found}", path.display());
    }
    text
}

/// Compiles what changed, as many at a time as cargo allows, and answers with all stems.
fn compile_all(nvcc: &Nvcc, sources: &[PathBuf], out: &Path) -> Vec<String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize);
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs.min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(reason) = compile(nvcc, source, out) {
                        failures.lock().expect("no thread panics holding it").push(reason);
                    }
                }
            });
        }
    });
    for line in failures.into_inner().expect("no thread panics holding it").iter().flat_map(|text| text.lines()) {
        println!("cargo::error={line}");
    }
    sources.iter().map(|source| stem(source)).collect()
}

/// Compiles one source, unless its fatbin was made from the very same text by the same compiler and flags.
fn compile(nvcc: &Nvcc, source: &Path, out: &Path) -> Result<(), String> {
    let stem = stem(source);
    let (fatbin, report, key) =
        (out.join(format!("{stem}.fatbin")), out.join(format!("{stem}.ptxas")), out.join(format!("{stem}.key")));
    let arguments = nvcc.arguments(&stem);
    let made_from = format!("{}\n{arguments:?}\n{}", nvcc.version, with_headers(source));
    if fatbin.exists() && report.exists() && fs::read_to_string(&key).is_ok_and(|made| made == made_from) {
        return Ok(());
    }
    // Without its key a fatbin counts as stale, whatever happens from here on.
    let _ = fs::remove_file(&key);
    let output = Command::new(&nvcc.program)
        .args(&arguments)
        .arg(source)
        .arg("-o")
        .arg(&fatbin)
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} could not be compiled:\n{said}", source.display()));
    }
    fs::write(&report, said.as_bytes())
        .and_then(|()| fs::write(&key, made_from))
        .map_err(|error| format!("{}: {error}", out.display()))
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
