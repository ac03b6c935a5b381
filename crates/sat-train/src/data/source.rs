//! Bytes of a file, bounded and with errors that name it.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use super::DataError;

/// The most pixel bytes that a set may hold, 2 GiB: a header cannot make us allocate more.
pub(super) const MAX_BYTES: u64 = 2 << 30;

pub(super) fn io_error(path: &Path) -> impl Fn(std::io::Error) -> DataError {
    move |source| DataError::Io { path: path.to_owned(), source }
}

pub(super) fn check_size(path: &Path, bytes: u64) -> Result<(), DataError> {
    if bytes > MAX_BYTES {
        return Err(DataError::TooLarge { path: path.to_owned(), bytes, limit: MAX_BYTES });
    }
    Ok(())
}

/// Opens `path`, which gzip may have compressed: its first bytes tell, not its name.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let open = || File::open(path).map(BufReader::new).map_err(io_error(path));
    let start = read_up_to(path, open()?, 2)?;
    Ok(match start == [0x1f, 0x8b] {
        true => Box::new(flate2::read::MultiGzDecoder::new(open()?)),
        false => Box::new(open()?),
    })
}

/// Exactly `count` bytes; `before` bytes of the same file have been read already.
pub(super) fn read_exactly(
    path: &Path,
    reader: &mut dyn Read,
    count: u64,
    before: u64,
) -> Result<Vec<u8>, DataError> {
    let bytes = read_up_to(path, reader, count)?;
    let actual = bytes.len() as u64;
    if actual < count {
        let (expected, actual) = (before + count, before + actual);
        return Err(DataError::Truncated { path: path.to_owned(), expected, actual });
    }
    Ok(bytes)
}

/// At most `limit` bytes. The buffer grows with the data that really come. A compressed stream that
/// stops early gives what came before.
pub(super) fn read_up_to(path: &Path, reader: impl Read, limit: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    match reader.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(bytes),
        Err(error) => Err(io_error(path)(error)),
    }
}
