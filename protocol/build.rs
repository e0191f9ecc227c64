//! Compiles the proto files with protox (pure Rust, no `protoc`) and derives serde with hexadecimal bytes,
//! so that one definition serves the wire, the digests and the JSON that people read.

use std::error::Error;

const FILES: [&str; 6] = [
    "polylink/market/v1/types.proto",
    "polylink/market/v1/tx.proto",
    "polylink/market/v1/query.proto",
    "polylink/tiqe/v1/types.proto",
    "polylink/tiqe/v1/tx.proto",
    "polylink/tiqe/v1/query.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(FILES, ["proto"])?;
    let encoded = protox::Compiler::new(["proto"])?.open_files(FILES)?.encode_file_descriptor_set();
    std::fs::write(std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin"), encoded)?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    config.type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
    config.message_attribute(".", "#[serde(default, deny_unknown_fields)]");
    for file in &set.file {
        for message in &file.message_type {
            for field in &message.field {
                let path = format!(".{}.{}.{}", file.package(), message.name(), field.name());
                let repeated = field.label() == prost_types::field_descriptor_proto::Label::Repeated;
                if field.r#type() == prost_types::field_descriptor_proto::Type::Bytes {
                    let with = if repeated { "crate::hex_bytes::list" } else { "crate::hex_bytes" };
                    config.field_attribute(&path, format!("#[serde(with = \"{with}\")]"));
                }
            }
        }
    }
    config.compile_fds(set)?;
    Ok(())
}
