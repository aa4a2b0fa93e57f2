//! A server under test: a process whose processor time and memory can be read from outside.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Longest wait for a server to say that it listens.
const STARTING: Duration = Duration::from_secs(30);

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Server {
    /// Starts a program; what it prints is also shown if `verbose`.
    pub fn start(name: &str, command: &mut Command, verbose: bool) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        // As many lines as a start may say; what follows is read and dropped.
        let (send, lines) = mpsc::sync_channel(1_000);
        let pipes: [Option<Box<dyn Read + Send>>; 2] =
            [out.map(|it| Box::new(it) as _), err.map(|it| Box::new(it) as _)];
        for pipe in pipes.into_iter().flatten() {
            let send = send.clone();
            let thread = std::thread::Builder::new().name(format!("{name} output"));
            thread.spawn(move || pass_on(pipe, &send, verbose))?;
        }
        Ok(Self { name: name.to_owned(), child, lines })
    }

    /// The first thing that `find` makes of a line of its output.
    pub fn line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        loop {
            match self.lines.recv_timeout(STARTING) {
                Ok(line) => {
                    if let Some(found) = find(&line) {
                        return Ok(found);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("{} did not start in {STARTING:?}", self.name),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    bail!("{} ended with {}; --verbose shows what it said", self.name, self.child.wait()?)
                }
            }
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Processor time used so far, in seconds, by it and its children. Read in hundredths.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let mut total = 0.0;
        for pid in self.tree() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            total += cpu_ticks(&stat).context("the system does not tell processor time")? as f64 / ticks;
        }
        Ok(total)
    }

    /// Resident memory in KiB, of it and its children.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for pid in self.tree() {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            total += resident(&rollup).context("the system does not tell resident memory")?;
        }
        Ok(total)
    }

    /// It and all that it started.
    fn tree(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut looked_at = 0;
        while let Some(pid) = found.get(looked_at).copied() {
            looked_at += 1;
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(pipe: impl Read, lines: &mpsc::SyncSender<String>, verbose: bool) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if verbose {
            eprintln!("{line}");
        }
        // Nobody waits for lines once it has started.
        let _ = lines.try_send(line);
    }
}

/// User and system time out of `/proc/<pid>/stat`: fields 14 and 15, the second being a name that may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

fn resident(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_past_any_name() {
        let stat = "4711 (a) b (c) S 1 2 3 0 -1 4194304 100 0 0 0 150 75 9 9 20 0 8 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(225));
        assert_eq!(cpu_ticks("nothing"), None);
    }

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(resident("aaaa [rollup]\nRss:               12345 kB\nPss: 1 kB\n"), Some(12_345));
    }

    #[test]
    fn our_own_process_can_be_measured() {
        let server = Server::start("sleep", Command::new("sleep").arg("30"), false).unwrap();
        assert!(server.resident_kib().unwrap() > 0);
        assert!(server.cpu_seconds().unwrap() < 10.0);
    }
}
