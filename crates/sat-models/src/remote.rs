//! Public files, fetched once and checked.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A public file and its SHA-256.
///
/// ```no_run
/// use sat_models::remote::{Network, RemoteFile};
///
/// let file = RemoteFile {
///     url: "https://example.org/resnet50.safetensors".into(),
///     name: "resnet50.safetensors".into(),
///     limit: 110_000_000,
///     sha256: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
/// };
/// let path = file.fetch("weights", Network::Download)?;
/// # Ok::<(), sat_models::remote::FetchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its address.
    pub url: Cow<'static, str>,
    /// Its name on the disk.
    pub name: Cow<'static, str>,
    /// Its size in bytes, or a bound to it: a download stops there.
    pub limit: u64,
    /// Its SHA-256 in lower-case hexadecimal digits: all 64, or the first 8 at least. Eight, which is
    /// what torchvision publishes, find any accident, but not a forgery.
    pub sha256: Cow<'static, str>,
}

/// Whether a file that is not there may be downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Download,
    /// It may not: what is there is checked, and what is not there is an error.
    Offline,
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes so far.
    pub received: u64,
    /// Bytes in all, if the server says.
    pub total: Option<u64>,
}

/// Why a file is not there, or not the right one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The file is not there, and it is not to be fetched.
    #[error("{}: not there, and downloads are off; fetch {url} yourself and put it there", path.display())]
    Offline {
        /// Where the file is expected.
        path: PathBuf,
        /// Where it can be found.
        url: String,
    },
    /// The file could not be fetched.
    #[error("cannot download {url}: {reason}; try again, or fetch it yourself and put it at {}", path.display())]
    Download {
        /// The address.
        url: String,
        /// Where the file is expected.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The file is not the official one.
    #[error("{}: its SHA-256 is {actual}, not {expected}; delete it and download it again", path.display())]
    Checksum {
        /// The file, or where it would have been put.
        path: PathBuf,
        /// The official SHA-256, or its first digits.
        expected: String,
        /// The one found.
        actual: String,
    },
    /// What the file is compared with is no SHA-256.
    #[error(
        "`{given}` is no SHA-256: give 64 hexadecimal digits in lower case, or the first 8 at least"
    )]
    BadChecksum {
        /// The text given.
        given: String,
    },
    /// A download needs a cargo feature that this build lacks.
    #[error("{}: not there, and downloading needs the cargo feature `download`; enable it, or fetch {url} yourself and put it there", path.display())]
    MissingFeature {
        /// Where the file is expected.
        path: PathBuf,
        /// Where it can be found.
        url: String,
    },
    /// The disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl RemoteFile {
    /// Makes sure that the file is in `dir` and is the official one. One that is there already is
    /// only checked. A download goes to a temporary file and is renamed when its SHA-256 is right.
    ///
    /// # Errors
    ///
    /// - [`FetchError::Checksum`]: it has another SHA-256, downloaded or there before. A file that was
    ///   there is left alone.
    /// - [`FetchError::BadChecksum`]: `sha256` is none.
    /// - [`FetchError::Offline`]: it is not there, and `network` says to leave it at that.
    /// - [`FetchError::Download`]: the server, or the way to it, failed.
    /// - [`FetchError::MissingFeature`]: it is not there, and this build lacks the cargo feature
    ///   `download`.
    /// - [`FetchError::Io`]: the disk.
    pub fn fetch(&self, dir: impl AsRef<Path>, network: Network) -> Result<PathBuf, FetchError> {
        self.fetch_with(dir, network, |_| ())
    }

    /// As [`RemoteFile::fetch`], and calls `progress` after every piece of a download.
    ///
    /// # Errors
    ///
    /// Those of [`RemoteFile::fetch`].
    pub fn fetch_with(
        &self,
        dir: impl AsRef<Path>,
        network: Network,
        progress: impl FnMut(Progress),
    ) -> Result<PathBuf, FetchError> {
        let is_digit = |digit: u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
        if !(8..=64).contains(&self.sha256.len()) || !self.sha256.bytes().all(is_digit) {
            return Err(FetchError::BadChecksum { given: self.sha256.to_string() });
        }
        let dir = dir.as_ref();
        let path = dir.join(self.name.as_ref());
        if path.is_file() {
            let file = File::open(&path).map_err(io_error(&path))?;
            let sum = copy(BufReader::new(file), io::sink(), |_| ()).map_err(io_error(&path))?;
            self.check(&path, sum)?;
            return Ok(path);
        }
        match network {
            Network::Offline => Err(FetchError::Offline { path, url: self.url.to_string() }),
            Network::Download => self.download(dir, path, progress),
        }
    }

    #[cfg(not(feature = "download"))]
    fn download(
        &self,
        _dir: &Path,
        path: PathBuf,
        _progress: impl FnMut(Progress),
    ) -> Result<PathBuf, FetchError> {
        Err(FetchError::MissingFeature { path, url: self.url.to_string() })
    }

    #[cfg(feature = "download")]
    fn download(
        &self,
        dir: &Path,
        path: PathBuf,
        mut progress: impl FnMut(Progress),
    ) -> Result<PathBuf, FetchError> {
        use std::time::Duration;

        let failed = |reason: String| FetchError::Download {
            url: self.url.to_string(),
            path: path.clone(),
            reason,
        };
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
        let response =
            agent.get(self.url.as_ref()).call().map_err(|error| failed(error.to_string()))?;
        let body = response.into_body();
        let total = body.content_length();
        // One byte more than the limit shows that there are more.
        let body = body.into_reader().take(self.limit.saturating_add(1));
        let sum =
            copy(body, draft.as_file_mut(), |received| progress(Progress { received, total }))
                .map_err(|error| failed(error.to_string()))?;
        self.check(&path, sum)?;
        draft.as_file().sync_all().map_err(io_error(&path))?;
        draft.persist(&path).map_err(|error| io_error(&path)(error.error))?;
        Ok(path)
    }

    fn check(&self, path: &Path, actual: String) -> Result<(), FetchError> {
        if actual.starts_with(self.sha256.as_ref()) {
            return Ok(());
        }
        let expected = self.sha256.to_string();
        Err(FetchError::Checksum { path: path.to_owned(), expected, actual })
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path, source }
}

/// Copies all bytes and gives their SHA-256; says after each piece how many there were.
fn copy(
    mut from: impl Read,
    mut to: impl Write,
    mut progress: impl FnMut(u64),
) -> io::Result<String> {
    let (mut sum, mut buffer, mut received) = (Sha256::new(), vec![0; 1 << 16], 0);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => {
                sum.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
                received += count as u64;
                progress(received);
            }
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
