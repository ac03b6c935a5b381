use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::DataError;
use super::source::io_error;
use crate::units::hex;

/// A public file and its SHA-256.
///
/// ```no_run
/// use sat_train::data::{CIFAR10_BINARY, Network, Split, cifar10};
///
/// CIFAR10_BINARY.fetch("data", Network::Download)?;
/// let train = cifar10("data", Split::Train)?;
/// # Ok::<(), sat_train::data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its address.
    pub url: &'static str,
    /// Its name on the disk.
    pub name: &'static str,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal digits.
    pub sha256: &'static str,
}

/// Whether a file that is not there may be downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Download,
    /// It may not: what is there is checked, and what is not there is an error.
    Offline,
}

/// CIFAR-10, binary version, for [`cifar10`](super::cifar10).
pub const CIFAR10_BINARY: RemoteFile = RemoteFile {
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    name: "cifar-10-binary.tar.gz",
    bytes: 170_052_171,
    sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
};

/// CIFAR-10, Python version, for [`cifar10`](super::cifar10).
pub const CIFAR10_PYTHON: RemoteFile = RemoteFile {
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    name: "cifar-10-python.tar.gz",
    bytes: 170_498_071,
    sha256: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
};

/// CIFAR-100, binary version, for [`cifar100`](super::cifar100).
pub const CIFAR100_BINARY: RemoteFile = RemoteFile {
    url: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    name: "cifar-100-binary.tar.gz",
    bytes: 168_513_871,
    sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
};

/// CIFAR-100, Python version, for [`cifar100`](super::cifar100).
pub const CIFAR100_PYTHON: RemoteFile = RemoteFile {
    url: "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    name: "cifar-100-python.tar.gz",
    bytes: 169_001_437,
    sha256: "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
};

impl RemoteFile {
    /// Makes sure that the file is in `dir` and is the official one. One that is there already is
    /// only checked. A download goes to a temporary file and is renamed when its SHA-256 is right.
    ///
    /// # Errors
    ///
    /// - [`DataError::Checksum`]: it has another SHA-256, downloaded or there before. A file that was
    ///   there is left alone.
    /// - [`DataError::Offline`]: it is not there, and `network` says to leave it at that.
    /// - [`DataError::Download`]: the server, or the way to it, failed.
    /// - [`DataError::MissingFeature`]: it is not there, and this build lacks the cargo feature
    ///   `download`.
    /// - [`DataError::Io`]: the disk.
    pub fn fetch(&self, dir: impl AsRef<Path>, network: Network) -> Result<PathBuf, DataError> {
        let dir = dir.as_ref();
        let path = dir.join(self.name);
        if path.is_file() {
            let file = File::open(&path).map_err(io_error(&path))?;
            let sum = copy(BufReader::new(file), std::io::sink()).map_err(io_error(&path))?;
            self.check(&path, sum)?;
            return Ok(path);
        }
        match network {
            Network::Offline => Err(DataError::Offline { path, url: self.url.to_owned() }),
            Network::Download => self.download(dir, path),
        }
    }

    #[cfg(not(feature = "download"))]
    fn download(&self, _dir: &Path, _path: PathBuf) -> Result<PathBuf, DataError> {
        Err(DataError::MissingFeature { what: "downloading", feature: "download" })
    }

    #[cfg(feature = "download")]
    fn download(&self, dir: &Path, path: PathBuf) -> Result<PathBuf, DataError> {
        use std::time::Duration;

        let failed = |reason: String| DataError::Download { url: self.url.to_owned(), reason };
        std::fs::create_dir_all(dir).map_err(io_error(dir))?;
        let mut draft = tempfile::Builder::new()
            .prefix(".download-")
            .tempfile_in(dir)
            .map_err(io_error(dir))?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(Duration::from_secs(3600)))
            .build()
            .into();
        let response = agent.get(self.url).call().map_err(|error| failed(error.to_string()))?;
        // One byte more than announced shows that there are more.
        let body = response.into_body().into_reader().take(self.bytes + 1);
        let sum = copy(body, draft.as_file_mut()).map_err(|error| failed(error.to_string()))?;
        self.check(&path, sum)?;
        draft.as_file().sync_all().map_err(io_error(&path))?;
        draft.persist(&path).map_err(|error| io_error(&path)(error.error))?;
        Ok(path)
    }

    fn check(&self, path: &Path, actual: String) -> Result<(), DataError> {
        if actual == self.sha256 {
            return Ok(());
        }
        let expected = self.sha256.to_owned();
        Err(DataError::Checksum { path: path.to_owned(), expected, actual })
    }
}

/// Copies all bytes and says their SHA-256.
fn copy(mut from: impl Read, mut to: impl Write) -> std::io::Result<String> {
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => {
                sum.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
    Ok(hex(&sum.finalize()))
}
