//! C and C++ programs, compiled and linked with the library of this build.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::root;

/// How a program is linked with the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    Static,
}

pub const LINKS: [Link; 2] = [Link::Shared, Link::Static];

/// Returns the build folder.
pub fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_arrowquant"))
        .parent()
        .unwrap()
}

/// Returns the path of a library built for the tests; the one in the parent folder may be older.
pub fn library(name: &str) -> PathBuf {
    built().join("deps").join(name)
}

/// Returns the file name of the shared library.
pub fn shared() -> String {
    format!("{DLL_PREFIX}arrowquant{DLL_SUFFIX}")
}

/// Returns cargo with the options of this build, so that it rebuilds nothing.
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

/// Returns a folder where the shared library is found by its SONAME.
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

/// Returns the C or C++ compiler, with warnings as errors.
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

/// Runs a tool that belongs to the compiler or the system.
pub fn run(command: &mut Command, package: &str) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| {
        let tool = command.get_program();
        panic!("{tool:?}: {error}; the tests need the package {package}")
    })
}

/// Expects success, and returns the output.
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

/// Compiles a program of one file and links it with the library.
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
