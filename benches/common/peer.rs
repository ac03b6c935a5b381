//! Another program that measures the same work, in turns with a bench.

use std::{
    io::{self, BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// A running script of benches/peers, which answers a line for each question.
pub(crate) struct Peer {
    /// What it is, by its own words.
    pub(crate) software: String,
    child: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts `python benches/peers/SCRIPT --serve --threads THREADS`. Its allocator keeps the pages of freed
    /// tensors, as ours does: fresh ones cost more than the arithmetic on them.
    pub(crate) fn start(python: &str, script: &str, threads: usize) -> io::Result<Self> {
        let path = format!("{}/benches/peers/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(python)
            .args([&path, "--serve", "--threads", &threads.to_string()])
            .env(
                "GLIBC_TUNABLES",
                "glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=40000000000",
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot run {python}: {error}"))
            })?;
        let ended = || io::Error::other(format!("{python} {path} ended before it could be asked"));
        let questions = child.stdin.take().ok_or_else(ended)?;
        let mut answers = BufReader::new(child.stdout.take().ok_or_else(ended)?).lines();
        let software = answers.next().ok_or_else(ended)??;
        Ok(Self { software, child, questions, answers })
    }

    /// The milliseconds that it answers; none where it has no such thing.
    pub(crate) fn ask(&mut self, question: &str) -> io::Result<Option<f64>> {
        writeln!(self.questions, "{question}")?;
        let ended = || io::Error::other(format!("no answer to `{question}`"));
        let answer = self.answers.next().ok_or_else(ended)??;
        // Its threads wait for more work, and take a core, for some milliseconds.
        std::thread::sleep(Duration::from_millis(5));
        match answer.as_str() {
            "none" => Ok(None),
            ms => match ms.parse() {
                Ok(ms) if f64::is_finite(ms) => Ok(Some(ms)),
                _ => Err(io::Error::other(format!("`{ms}` is no answer to `{question}`"))),
            },
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
