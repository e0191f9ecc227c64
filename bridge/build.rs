//! Compiles the proto files, the ledger's own among them, into one descriptor set: what REST and its tests are made from.

use std::error::Error;
use std::path::{Path, PathBuf};

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let folders = ["proto", "../protocol/proto"];
    let mut found = Vec::new();
    for folder in folders {
        println!("cargo:rerun-if-changed={folder}");
        files(Path::new(folder), &mut found)?;
    }
    found.sort();
    let encoded = protox::Compiler::new(folders)?.include_imports(true).open_files(found)?.encode_file_descriptor_set();
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin"), encoded)?;
    Ok(())
}
