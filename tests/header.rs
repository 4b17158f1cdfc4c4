//! The C header is what the library exports, and compiles wherever C and C++ do.

use std::path::PathBuf;

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};
use regex::Regex;

use crate::common::native::*;
use crate::common::*;

/// The files of the C API in the order of the header. Those before `config` need nothing but
/// `core`, and are all there is of a firmware's library.
const SECTIONS: &[&str] = &[
    "guard",
    "types",
    "matrix",
    "products",
    "kernels",
    "activation",
    "config",
    "calibration",
    "source",
    "options",
    "plan",
    "report",
    "run",
    "analysis",
    "evolution",
    "fold",
    "model",
    "inputs",
    "verification",
    "arrow",
];

/// What stands before the declarations; the version is that of Cargo.toml.
const OPENING: &str = r#"
#ifndef ARROWQUANT_H
#define ARROWQUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Define AQ_NO_STD for firmware: this leaves only the functions that need no standard library and
 * no allocator. */
#ifndef AQ_NO_STD
#define AQ_STD
#endif

/*
 * Linkage.
 *
 * AQ_API precedes every function. On Windows define AQ_DLL in programs that use the DLL, and
 * AQ_DLL_EXPORTS in a DLL of your own that contains the static library and exports its functions.
 * For tools that read this header, such as cffi, define AQ_API as empty.
 */
#ifndef AQ_API
#if defined(_WIN32) || defined(__CYGWIN__)
#if defined(AQ_DLL_EXPORTS)
#define AQ_API __declspec(dllexport)
#elif defined(AQ_DLL)
#define AQ_API __declspec(dllimport)
#else
#define AQ_API
#endif
#elif defined(__GNUC__)
#define AQ_API __attribute__((visibility("default")))
#else
#define AQ_API
#endif
#endif

/*
 * Version of this header.
 */
#define AQ_VERSION_MAJOR @MAJOR@
#define AQ_VERSION_MINOR @MINOR@
#define AQ_VERSION_PATCH @PATCH@

/*
 * Initial values.
 */
#ifdef __cplusplus
template <class T>
inline T aq_init() {
  T value = T();
  value.struct_size = sizeof(T);
  return value;
}
#define AQ_INIT(type) aq_init<type>()
#else
/** Initializes a struct: sets struct_size to sizeof(type), and every other field to 0. */
#define AQ_INIT(type) { .struct_size = sizeof(type) }
#endif

#ifdef __cplusplus
extern "C" {
#endif
"#;

const ARROW: &str = r#"
/* The Arrow C data and stream interfaces, as their specification defines them. */

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
  const char *format;
  const char *name;
  const char *metadata;
  int64_t flags;
  int64_t n_children;
  struct ArrowSchema **children;
  struct ArrowSchema *dictionary;
  void (*release)(struct ArrowSchema *);
  void *private_data;
};

struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void **buffers;
  struct ArrowArray **children;
  struct ArrowArray *dictionary;
  void (*release)(struct ArrowArray *);
  void *private_data;
};

#endif

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
  int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
  int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
  const char *(*get_last_error)(struct ArrowArrayStream *);
  void (*release)(struct ArrowArrayStream *);
  void *private_data;
};

#endif
"#;

const CLOSING: &str = r#"
#ifdef __cplusplus
}
#endif

#endif
"#;

fn header_path() -> PathBuf {
    root().join("include/arrowquant.h")
}

/// The `//!` lines of a source file as a C comment.
fn preamble(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let lines: Vec<String> = lines
        .map(|line| format!(" *{line}").trim_end().to_owned())
        .collect();
    format!("/*\n{}\n */\n", lines.join("\n"))
}

/// What cbindgen makes of one file of the C API.
fn section(name: &str) -> String {
    let path = root().join(format!("src/capi/{name}.rs"));
    let source = std::fs::read_to_string(&path).unwrap();
    // Types without a function in their own file count, too.
    let types = Regex::new(r"pub (?:type|struct) (aq_\w+)").unwrap();
    let types = types
        .captures_iter(&source)
        .map(|found| found[1].to_owned());
    let mut config = Config {
        language: Language::C,
        no_includes: true,
        style: Style::Both,
        usize_is_size_t: true,
        documentation_style: DocumentationStyle::Doxy,
        line_length: 100,
        ..Config::default()
    };
    config.export.include = types.collect();
    config.export.rename.insert(
        "FFI_ArrowArrayStream".into(),
        "struct ArrowArrayStream".into(),
    );
    config.function.prefix = Some("AQ_API".into());
    config
        .defines
        .insert("feature = std".into(), "AQ_STD".into());
    let bindings = Builder::new()
        .with_config(config)
        .with_src(&path)
        .generate()
        .unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    format!("\n{}\n{}", preamble(&source), tidy(text.trim_start()))
}

/// Comments of one line on one line, constants without a comment together, and types by the
/// names they have everywhere.
fn tidy(text: &str) -> String {
    let replace = |text: &str, pattern: &str, with: &str| {
        let pattern = Regex::new(pattern).unwrap();
        pattern.replace_all(text, with).into_owned()
    };
    let text = replace(text, r"/\*\*\n *\* (.*)\n *\*/", "/** $1 */");
    let text = replace(&text, r"(?m)^(#define .*)\n(?:\n(#define))", "$1\n$2");
    let text = replace(&text, r"(?m)^(#define .*)\n(?:\n(#define))", "$1\n$2");
    let text = replace(&text, r"\bstruct (aq_\w+ \*)", "$1");
    // cbindgen gives the macro a line of its own where parameters are below each other.
    let long = Regex::new(r"(?m)^AQ_API\n([^;]*;)").unwrap();
    let joined = long.replace_all(&text, |found: &regex::Captures<'_>| {
        let indent = " ".repeat("AQ_API ".len());
        format!("AQ_API {}", found[1].replace('\n', &format!("\n{indent}")))
    });
    joined.into_owned()
}

fn generate() -> String {
    let conventions = std::fs::read_to_string(root().join("src/capi/mod.rs")).unwrap();
    let opening = OPENING
        .replace("@MAJOR@", env!("CARGO_PKG_VERSION_MAJOR"))
        .replace("@MINOR@", env!("CARGO_PKG_VERSION_MINOR"))
        .replace("@PATCH@", env!("CARGO_PKG_VERSION_PATCH"));
    let mut header = preamble(&conventions) + &opening;
    for name in SECTIONS {
        if *name == "config" {
            header += "\n#ifdef AQ_STD\n";
        }
        if *name == "source" {
            header += ARROW;
        }
        header += &section(name);
    }
    header += "\n#endif /* AQ_STD */\n";
    header + CLOSING
}

#[test]
fn the_header_is_as_generated() {
    let expected = generate();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(header_path(), &expected).unwrap();
    }
    let found = std::fs::read_to_string(header_path()).unwrap();
    assert!(
        found == expected,
        "include/arrowquant.h differs from the source; UPDATE_HEADER=1 cargo test --release header writes it anew"
    );
}

#[test]
fn the_headers_compile_alone_and_twice() {
    let folder = tempfile::tempdir().unwrap();
    let c = ["c99", "c11", "c17"].map(|standard| (standard, "arrowquant.h", "c"));
    let cpp = ["c++11", "c++17", "c++20"].map(|standard| (standard, "arrowquant.h", "cpp"));
    let wrapper = ["c++17", "c++20"].map(|standard| (standard, "arrowquant.hpp", "cpp"));
    for (standard, header, extension) in c.into_iter().chain(cpp).chain(wrapper) {
        for (first, firmware) in [("", false), ("#define AQ_NO_STD\n", true)] {
            if firmware && header.ends_with("hpp") {
                continue;
            }
            let source = folder.path().join(format!("twice.{extension}"));
            let include = format!("#include \"{header}\"\n");
            std::fs::write(&source, format!("{first}{include}{include}")).unwrap();
            succeed(
                compiler(standard).arg("-fsyntax-only").arg(&source),
                "gcc or g++",
            );
        }
    }
}
