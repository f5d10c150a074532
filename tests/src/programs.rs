//! Where the two programs are: `AFAR_BIN_DIR`, or beside the test that runs (`target/PROFILE`).
use std::path::PathBuf;

fn program(name: &str) -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().expect("this program has a path");
        let profile = test.ancestors().find(|dir| dir.join("deps").is_dir()).expect("tests run from target/PROFILE/deps");
        profile.to_path_buf()
    };
    let path = std::env::var_os("AFAR_BIN_DIR").map_or_else(beside, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not built: `make unit` builds it, or `cargo build -p afar -p afard`", path.display());
    path
}

/// The client.
pub fn afar() -> PathBuf {
    program("afar")
}

/// The node.
pub fn afard() -> PathBuf {
    program("afard")
}
