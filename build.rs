//! Link arguments of the shared library; writes nothing.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // For tests that call the C compiler.
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=TARGET={target}");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "linux" {
        // The number is AQ_ABI_VERSION of src/capi/types.rs, which changes whenever the C ABI breaks.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libarrowquant.so.1");
        // zstd calls these where a program has them, but a program's are not meant for the zstd in
        // here: it gets names that no program has.
        for point in ["compress", "decompress"] {
            for end in ["begin", "end"] {
                println!("cargo:rustc-cdylib-link-arg=-Wl,--wrap=ZSTD_trace_{point}_{end}");
            }
        }
    }
    // cargo-c, whose feature this is, gives it the name of where it is installed.
    if matches!(os.as_str(), "macos" | "ios") && std::env::var_os("CARGO_FEATURE_CAPI").is_none() {
        // Without a name it has that of this machine's folder.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libarrowquant.1.dylib");
    }
}
