//! C and C++ programs, compiled against the library this build made.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::root;

/// How a program gets the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    Static,
}

pub const LINKS: [Link; 2] = [Link::Shared, Link::Static];

/// The folder of what was built.
pub fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_arrowquant"))
        .parent()
        .unwrap()
}

/// A library as it was built for the tests; one folder up is what `cargo build` made some time.
pub fn library(name: &str) -> PathBuf {
    built().join("deps").join(name)
}

/// The name of the shared library as it was built.
pub fn shared() -> String {
    format!("{DLL_PREFIX}arrowquant{DLL_SUFFIX}")
}

/// Cargo as it made this build: what it has built already it does not build again.
pub fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg(command).arg("--quiet").current_dir(root());
    let profile = built().file_name().unwrap().to_str().unwrap();
    cargo
        .arg("--profile")
        .arg(if profile == "debug" { "dev" } else { profile });
    cargo.arg("--target-dir").arg(built().parent().unwrap());
    cargo
}

/// A folder where the shared library is found by the name that it gives itself.
pub fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared");
        std::fs::create_dir_all(&folder).unwrap();
        let own = match DLL_SUFFIX {
            ".dylib" => "libarrowquant.0.dylib".to_owned(),
            ".so" => "libarrowquant.so.0".to_owned(),
            _ => shared(),
        };
        for name in [shared(), own] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            #[cfg(unix)]
            std::os::unix::fs::symlink(library(&shared()), link).unwrap();
            #[cfg(not(unix))]
            std::fs::copy(library(&shared()), link).unwrap();
        }
        folder
    })
}

/// The C or C++ compiler, warnings being errors.
pub fn compiler(standard: &str) -> Command {
    let cpp = standard.starts_with("c++");
    let found = cc::Build::new()
        .cpp(cpp)
        .target(env!("TARGET"))
        .host(env!("TARGET"))
        .opt_level(1)
        .cargo_metadata(false)
        .try_get_compiler();
    let package = if cpp { "g++" } else { "gcc" };
    let found = found.unwrap_or_else(|error| {
        panic!("the tests need a C and a C++ compiler, such as the package {package}: {error}")
    });
    let mut command = Command::new(found.path());
    command.args(found.args()).envs(found.get_envs());
    command.arg(format!("-std={standard}"));
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    command.arg("-I").arg(root().join("include"));
    command
}

/// Runs a tool that comes with the compiler or the system.
pub fn run(command: &mut Command, package: &str) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| {
        let tool = command.get_program();
        panic!("{tool:?}: {error}; the tests need the package {package}")
    })
}

/// Expects success, and returns what was printed.
pub fn succeed(command: &mut Command, package: &str) -> String {
    let output = run(command, package);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (tool, args) = (command.get_program(), command.get_args());
    assert!(
        output.status.success(),
        "{tool:?} {:?}: {}\n{stdout}{stderr}",
        args.collect::<Vec<_>>(),
        output.status
    );
    stdout
}

/// Compiles a program of one file and links the library to it.
pub fn build(source: &Path, standard: &str, link: Link, program: &Path) {
    let mut command = compiler(standard);
    command.arg("-g").arg(source).arg("-o").arg(program);
    match link {
        Link::Shared => {
            let folder = library_folder();
            command.arg("-L").arg(folder).arg("-larrowquant");
            command.arg(format!("-Wl,-rpath,{}", folder.display()));
        }
        Link::Static => {
            command.arg(library("libarrowquant.a"));
        }
    }
    command.args(["-lpthread", "-ldl", "-lm"]);
    succeed(&mut command, "gcc or g++");
}
