//! Where the two programs are: `AFAR_BIN_DIR`, or beside the test that runs (`target/PROFILE`); those of an earlier version,
//! if there are any, in `AFAR_TEST_BEFORE`.
use std::path::PathBuf;

/// The client and the node of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs(PathBuf);

impl Programs {
    /// Today's.
    ///
    /// # Panics
    /// If this test does not run from a folder of cargo's.
    pub fn today() -> Self {
        let beside = || {
            let test = std::env::current_exe().expect("this program has a path");
            let profile = test.ancestors().find(|dir| dir.join("deps").is_dir()).expect("tests run from target/PROFILE/deps");
            profile.to_path_buf()
        };
        Self(std::env::var_os("AFAR_BIN_DIR").map_or_else(beside, PathBuf::from))
    }

    /// Those of the last version whose layouts could not change.
    ///
    /// # Panics
    /// If nobody said where they are: then what this test is about has not been tested.
    pub fn before() -> Self {
        let folder = std::env::var_os("AFAR_TEST_BEFORE").map(PathBuf::from);
        Self(folder.expect("AFAR_TEST_BEFORE names no folder with the programs of an earlier version: run `make test-upgrade`"))
    }

    fn program(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        assert!(path.exists(), "{} is not built: `make unit` builds it, or `cargo build -p afar -p afard`", path.display());
        path
    }

    /// The client.
    pub fn afar(&self) -> PathBuf {
        self.program("afar")
    }

    /// The node.
    pub fn afard(&self) -> PathBuf {
        self.program("afard")
    }
}

/// Today's client.
pub fn afar() -> PathBuf {
    Programs::today().afar()
}

/// Today's node.
pub fn afard() -> PathBuf {
    Programs::today().afard()
}
