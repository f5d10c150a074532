//! How the certificate authority of a cluster's folder is replaced, step by step, so that at no moment somebody is believed by
//! nobody, and so that a step that was interrupted is found and gone on with.
//!
//! ```text
//! ca/next.crt next.key        made, and not trusted by anybody yet            ┐ a layout trusts it besides the old one
//! ca/ca.crt ca.key            it certifies from now on; ca/old-N.* is before  ┘
//! client/ca.crt               both, for clients: until a layout withdraws the old one
//! ```
use super::{
    authority::{Authority, Pair},
    durable, handshake,
};
use crate::error::{Error, Kind};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Seconds since 1970, as certificates count.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

fn crypto(error: &rcgen::Error) -> Error {
    Error::new(Kind::Failed, format!("make certificates: {error}"))
}

/// The authorities of a cluster's folder.
#[derive(Debug)]
pub struct Authorities {
    folder: PathBuf,
    cluster: String,
}

impl Authorities {
    /// Of that folder.
    pub fn of(folder: &Path, cluster: &str) -> Self {
        Self { folder: folder.to_owned(), cluster: cluster.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.path(name);
        fs::read_to_string(&path).map_err(|error| Error::io(path.display(), &error))
    }

    fn write(&self, name: &str, content: &str, mode: u32) -> Result<(), Error> {
        let path = self.path(name);
        durable::write(&path, content.as_bytes(), mode).map_err(|error| Error::io(path.display(), &error))
    }

    fn restore(&self, certificate: String, key: String) -> Result<Authority, Error> {
        let authority = Authority::restore(&self.cluster, Pair { certificate, key }).map_err(|error| crypto(&error))?;
        if !authority.is_whole() {
            return Err(Error::usage(format!("{}: the key there is not the certificate's", self.path("ca").display()))
                .hint("if `afar cluster rekey --authority` was interrupted, run it again: it goes on where it was"));
        }
        Ok(authority)
    }

    /// The one that certifies nodes.
    ///
    /// # Errors
    /// If it is not there, or its key is another's.
    pub fn present(&self) -> Result<Authority, Error> {
        self.restore(self.read("ca/ca.crt")?, self.read("ca/ca.key")?)
    }

    /// Its certificate, DER.
    ///
    /// # Errors
    /// If it is not there.
    pub fn certificate(&self) -> Result<Vec<u8>, Error> {
        first(&self.read("ca/ca.crt")?, "ca/ca.crt")
    }

    /// Everyone whom the folder's clients believe, DER.
    ///
    /// # Errors
    /// If the file is not there.
    pub fn believed(&self) -> Result<Vec<Vec<u8>>, Error> {
        handshake::certificates(self.read("client/ca.crt")?.as_bytes(), "client/ca.crt")
    }

    /// Those before the present one that the folder's clients still believe: a change is under way as long as there are some.
    ///
    /// # Errors
    /// If a file is not there.
    pub fn former(&self) -> Result<Vec<Vec<u8>>, Error> {
        let present = self.certificate()?;
        Ok(self.believed()?.into_iter().filter(|certificate| *certificate != present).collect())
    }

    /// One that is to take the present one's place, if it was made.
    pub fn staged(&self) -> Option<Authority> {
        self.restore(self.read("ca/next.crt").ok()?, self.read("ca/next.key").ok()?).ok()
    }

    /// Makes one that is to take the present one's place; the same again if it was made before.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn stage(&self) -> Result<Authority, Error> {
        if let Some(staged) = self.staged() {
            return Ok(staged);
        }
        let next = Authority::new(&self.cluster, since_epoch()).map_err(|error| crypto(&error))?;
        self.write("ca/next.key", &next.pair.key, durable::SECRET)?;
        self.write("ca/next.crt", &next.pair.certificate, durable::PUBLIC)?;
        Ok(next)
    }

    /// Lets the one that was staged take the present one's place. To be called only when a layout trusts it.
    ///
    /// # Errors
    /// If a file cannot be read or written; then it can be called again.
    pub fn promote(&self) -> Result<(), Error> {
        let (certificate, key) = (self.path("ca/ca.crt"), self.path("ca/ca.key"));
        let wrong = |error: &std::io::Error| Error::io(self.path("ca").display(), error);
        let next = self.read("ca/next.crt")?;
        // Clients first: they believe both before a node shows the new one.
        let mut believed = self.read("client/ca.crt")?;
        if !handshake::certificates(believed.as_bytes(), "client/ca.crt")?.contains(&first(&next, "ca/next.crt")?) {
            believed = format!("{}\n{}\n", next.trim_end(), believed.trim_end());
            self.write("client/ca.crt", &believed, durable::PUBLIC)?;
        }
        // Once the key has moved, what is there is not the old one any more.
        if self.path("ca/next.key").exists() {
            for (path, mode) in [(&certificate, durable::PUBLIC), (&key, durable::SECRET)] {
                if path.exists() {
                    durable::keep_old(path, mode).map_err(|error| wrong(&error))?;
                }
            }
            durable::rename(&self.path("ca/next.key"), &key).map_err(|error| wrong(&error))?;
        }
        durable::rename(&self.path("ca/next.crt"), &certificate).map_err(|error| wrong(&error))
    }

    /// Whether a change was interrupted after its layout and before its end: [`Authorities::promote`] goes on with it.
    pub fn is_half_promoted(&self) -> bool {
        self.path("ca/next.crt").exists() && !self.path("ca/next.key").exists()
    }

    /// From now on the folder's clients believe the present one alone.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn forget_former(&self) -> Result<(), Error> {
        self.write("client/ca.crt", &self.read("ca/ca.crt")?, durable::PUBLIC)
    }
}

fn first(pem: &str, of: &str) -> Result<Vec<u8>, Error> {
    let found = handshake::certificates(pem.as_bytes(), of)?;
    found.into_iter().next().ok_or_else(|| Error::usage(format!("{of}: holds no certificate")))
}

/// The certificates of a PEM file, each as text.
pub fn blocks(pem: &str) -> Vec<String> {
    let begin = |block: &str| block.find("-----BEGIN CERTIFICATE-----").and_then(|at| block.get(at..)).map(|block| format!("{block}\n"));
    pem.split_inclusive("-----END CERTIFICATE-----").filter_map(begin).collect()
}

/// The certificate (PEM) of a file of authorities that belongs to this key.
///
/// # Errors
/// If none does.
pub fn certificate_of(key: &str, cluster: &str, authorities: &str) -> Result<String, Error> {
    let whole = |certificate: &String| {
        let pair = Pair { certificate: certificate.clone(), key: key.to_owned() };
        Authority::restore(cluster, pair).is_ok_and(|authority| authority.is_whole())
    };
    blocks(authorities).into_iter().find(whole).ok_or_else(|| {
        Error::usage("the CA file holds no certificate that belongs to this CA key")
            .hint("leave --ca-key out: then a new authority is made, which takes the place of the old one")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> (tempfile::TempDir, Authorities) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ca", "client"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let authority = Authority::new("demo", since_epoch()).unwrap();
        let authorities = Authorities::of(folder.path(), "demo");
        authorities.write("ca/ca.crt", &authority.pair.certificate, durable::PUBLIC).unwrap();
        authorities.write("ca/ca.key", &authority.pair.key, durable::SECRET).unwrap();
        authorities.write("client/ca.crt", &authority.pair.certificate, durable::PUBLIC).unwrap();
        (folder, authorities)
    }

    #[test]
    fn an_authority_is_replaced_and_clients_believe_both_until_the_end() {
        let (folder, authorities) = folder();
        let old = authorities.certificate().unwrap();
        let next = authorities.stage().unwrap();
        assert_eq!(authorities.stage().unwrap().pair.certificate, next.pair.certificate, "made once");
        assert_eq!((authorities.certificate().unwrap(), authorities.former().unwrap()), (old.clone(), Vec::new()), "nothing yet");
        authorities.promote().unwrap();
        assert_eq!(authorities.present().unwrap().pair.certificate, next.pair.certificate);
        assert_eq!(authorities.former().unwrap(), std::slice::from_ref(&old));
        assert_eq!(first(&fs::read_to_string(folder.path().join("ca/old-1.ca.crt")).unwrap(), "old").unwrap(), old);
        let key = folder.path().join("ca/old-1.ca.key");
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(authorities.staged().is_none());
        authorities.forget_former().unwrap();
        assert_eq!(authorities.former().unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(authorities.believed().unwrap(), [authorities.certificate().unwrap()]);
    }

    #[test]
    fn what_was_interrupted_goes_on() {
        let (folder, authorities) = folder();
        let old = fs::read_to_string(folder.path().join("ca/ca.key")).unwrap();
        let next = authorities.stage().unwrap();
        // As after a crash between the two renames.
        authorities.promote().unwrap();
        fs::write(folder.path().join("ca/next.crt"), &next.pair.certificate).unwrap();
        fs::copy(folder.path().join("ca/old-1.ca.crt"), folder.path().join("ca/ca.crt")).unwrap();
        assert!(authorities.is_half_promoted());
        assert!(authorities.present().is_err(), "a key of another certificate is never used");
        authorities.promote().unwrap();
        assert_eq!(authorities.present().unwrap().pair.key, next.pair.key);
        assert_eq!(fs::read_to_string(folder.path().join("ca/old-1.ca.key")).unwrap(), old);
        assert!(!folder.path().join("ca/old-2.ca.key").exists(), "the new key is not taken for an old one");
        assert_eq!(authorities.believed().unwrap().len(), 2);
    }

    #[test]
    fn a_key_finds_its_certificate_among_several() {
        let (ours, other) = (Authority::new("demo", since_epoch()).unwrap(), Authority::new("demo", since_epoch()).unwrap());
        let both = format!("{}{}", other.pair.certificate, ours.pair.certificate);
        let found = certificate_of(&ours.pair.key, "demo", &both).unwrap();
        let der = |pem: &str| handshake::certificates(pem.as_bytes(), "it").unwrap();
        assert_eq!(der(&found), der(&ours.pair.certificate));
        assert!(certificate_of(&ours.pair.key, "demo", &other.pair.certificate).is_err());
    }
}
