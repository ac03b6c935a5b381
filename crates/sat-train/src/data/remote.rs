use std::borrow::Cow;

use sat_models::remote::RemoteFile;

/// CIFAR-10, binary version, for [`cifar10`](super::cifar10).
///
/// ```no_run
/// use sat_train::data::{CIFAR10_BINARY, Network, Split, cifar10};
///
/// CIFAR10_BINARY.fetch("data", Network::Download)?;
/// let train = cifar10("data", Split::Train)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub const CIFAR10_BINARY: RemoteFile = archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
);

/// CIFAR-10, Python version, for [`cifar10`](super::cifar10).
pub const CIFAR10_PYTHON: RemoteFile = archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar-10-python.tar.gz",
    170_498_071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
);

/// CIFAR-100, binary version, for [`cifar100`](super::cifar100).
pub const CIFAR100_BINARY: RemoteFile = archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "cifar-100-binary.tar.gz",
    168_513_871,
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
);

/// CIFAR-100, Python version, for [`cifar100`](super::cifar100).
pub const CIFAR100_PYTHON: RemoteFile = archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "cifar-100-python.tar.gz",
    169_001_437,
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
);

const fn archive(
    url: &'static str,
    name: &'static str,
    limit: u64,
    sha256: &'static str,
) -> RemoteFile {
    RemoteFile {
        url: Cow::Borrowed(url),
        name: Cow::Borrowed(name),
        limit,
        sha256: Cow::Borrowed(sha256),
    }
}
