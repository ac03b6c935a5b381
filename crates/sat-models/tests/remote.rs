//! Fetching files, from a server of our own, and the table of torchvision's weights.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;

use sat_models::remote::{FetchError, Network, RemoteFile};
use sat_models::{ModelName, Torchvision, pretrained};
use sha2::{Digest, Sha256};
use tempfile::tempdir;

fn remote(url: String, bytes: &[u8]) -> RemoteFile {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let (url, name, sha256) = (url.into(), "file.bin".into(), sum.into());
    RemoteFile { url, name, limit: bytes.len() as u64, sha256 }
}

fn nowhere() -> RemoteFile {
    remote("http://localhost:1/file.bin".to_owned(), b"content")
}

#[test]
fn files_that_are_there_are_checked() {
    let dir = tempdir().unwrap();
    let file = nowhere();
    let error = file.fetch(dir.path(), Network::Offline).unwrap_err();
    assert!(matches!(&error, FetchError::Offline { path, .. } if path.ends_with("file.bin")));
    assert!(error.to_string().contains("http://localhost:1/file.bin"), "{error}");
    fs::write(dir.path().join("file.bin"), b"content").unwrap();
    for network in [Network::Offline, Network::Download] {
        assert_eq!(file.fetch(dir.path(), network).unwrap(), dir.path().join("file.bin"));
    }
    fs::write(dir.path().join("file.bin"), b"Content").unwrap();
    let error = file.fetch(dir.path(), Network::Download).unwrap_err();
    assert!(matches!(&error, FetchError::Checksum { expected, .. } if *expected == file.sha256));
    assert_eq!(fs::read(dir.path().join("file.bin")).unwrap(), b"Content");
}

#[test]
fn the_first_digits_of_a_checksum_will_do_but_not_too_few() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("file.bin"), b"content").unwrap();
    let whole = nowhere();
    let with = |sha256: &str| RemoteFile { sha256: sha256.to_owned().into(), ..whole.clone() };
    with(&whole.sha256[..8]).fetch(dir.path(), Network::Offline).unwrap();
    let wrong = with("01234567").fetch(dir.path(), Network::Offline);
    assert!(matches!(wrong, Err(FetchError::Checksum { .. })), "{wrong:?}");
    let capitals = whole.sha256.to_uppercase();
    let longer = format!("{}0", whole.sha256);
    for bad in ["", &whole.sha256[..7], &capitals, &longer, "not a sum"] {
        let error = with(bad).fetch(dir.path(), Network::Offline).unwrap_err();
        assert!(matches!(&error, FetchError::BadChecksum { given } if given == bad), "{error}");
    }
}

#[test]
fn torchvisions_weights_have_addresses_checksums_and_configurations() {
    let all: Vec<_> = ModelName::ALL
        .into_iter()
        .flat_map(|name| [Torchvision::V1, Torchvision::V2].map(|training| (name, training)))
        .filter_map(|(name, training)| Some((name, pretrained(name, training)?)))
        .collect();
    assert_eq!(all.len(), 21);
    let dir = tempdir().unwrap();
    for (name, weights) in all {
        let file = weights.file;
        assert_eq!(file.sha256.len(), 8);
        assert_eq!(*file.url, *format!("https://download.pytorch.org/models/{}", file.name));
        assert!(file.name.starts_with(name.as_str()), "{name}: {}", file.name);
        assert!(file.name.ends_with(&format!("-{}.pth", file.sha256)), "{}", file.name);
        // Refuses what is no such file, so the digits are ones.
        fs::write(dir.path().join(&*file.name), b"else").unwrap();
        let got = file.fetch(dir.path(), Network::Offline);
        assert!(matches!(got, Err(FetchError::Checksum { .. })), "{got:?}");
        let text = serde_json::to_string(&weights.config).unwrap();
        let activation = if name.as_str().starts_with("eff") { "silu" } else { "relu" };
        assert!(text.contains(&format!("\"activation\":\"{activation}\"")), "{text}");
        weights.config.validate().unwrap();
    }
    let b5 = pretrained(ModelName::EfficientNetB5, Torchvision::V1).unwrap().config;
    let text = serde_json::to_string(&b5).unwrap();
    assert!(text.contains("0.001") && text.contains("symmetric"), "{text}");
    assert!(pretrained(ModelName::ResNet20, Torchvision::V1).is_none());
    assert!(pretrained(ModelName::ResNet18, Torchvision::V2).is_none());
}

#[cfg(not(feature = "download"))]
#[test]
fn downloading_names_its_feature() {
    let error = nowhere().fetch(tempdir().unwrap().path(), Network::Download).unwrap_err();
    assert!(matches!(error, FetchError::MissingFeature { .. }), "{error}");
    assert!(error.to_string().contains("`download`"), "{error}");
}

#[cfg(feature = "download")]
mod download {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use sat_models::remote::Progress;

    use super::*;

    /// Answers one request and gives its address.
    fn serve(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file.bin", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = BufReader::new(stream.try_clone().unwrap());
            for line in request.lines() {
                if line.unwrap().is_empty() {
                    break;
                }
            }
            let _ = stream.write_all(&answer);
        });
        url
    }

    fn ok(body: &[u8], length: usize) -> Vec<u8> {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    #[test]
    fn a_download_is_kept_only_if_it_is_whole_and_right() {
        let content = vec![7; 200_000];
        let fetch = |answer: Vec<u8>| {
            let dir = tempdir().unwrap();
            let folder = dir.path().join("new");
            let got = remote(serve(answer), &content).fetch(&folder, Network::Download);
            let names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            (got.map(|path| fs::read(path).unwrap()), names)
        };
        let (got, names) = fetch(ok(&content, content.len()));
        assert_eq!((got.unwrap(), names), (content.clone(), vec!["file.bin".into()]));

        let mut wrong = content.clone();
        wrong[100_000] = 8;
        let longer = vec![7; 200_001];
        for body in [wrong, longer] {
            let (got, names) = fetch(ok(&body, body.len()));
            assert!(matches!(got, Err(FetchError::Checksum { .. })), "{got:?}");
            assert!(names.is_empty(), "{names:?}");
        }
        let cut = ok(&content[..1000], content.len());
        let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        for answer in [cut, missing, Vec::new()] {
            let (got, names) = fetch(answer);
            assert!(matches!(got, Err(FetchError::Download { .. })), "{got:?}");
            assert!(names.is_empty(), "{names:?}");
        }
    }

    #[test]
    fn a_download_tells_how_far_it_is() {
        let content = vec![7; 200_000];
        let file = remote(serve(ok(&content, content.len())), &content);
        let dir = tempdir().unwrap();
        let mut seen = Vec::new();
        file.fetch_with(dir.path(), Network::Download, |progress| seen.push(progress)).unwrap();
        assert!(seen.is_sorted_by(|a, b| a.received < b.received), "{seen:?}");
        let end = Progress { received: 200_000, total: Some(200_000) };
        assert_eq!(seen.last(), Some(&end));
    }
}
