//! The way of log lines to standard error: a bounded queue and a thread of its own.
//!
//! **Forces.** Whoever reads our standard error may be slow, or stand still; a request must not wait
//! for its log line. Memory is bounded. **Choice.** A line that finds the queue full is dropped and
//! counted (`caracal_log_dropped_total`): losing a line is better than losing a decision, and evidence
//! has a way of its own. What is queued is written before the process ends.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use caracal_net::logs;

/// How long the last lines may take.
const FLUSH: Duration = Duration::from_secs(2);
/// Tries to get a word in while the queue is full, and the time between two.
const TRIES: usize = 100;
const AGAIN: Duration = Duration::from_millis(10);

static QUEUE: OnceLock<Queue> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Where lines are put.
#[derive(Clone)]
pub struct Queue(SyncSender<Message>);

impl Queue {
    /// A queue of so many lines into `out`.
    pub fn new(lines: usize, out: impl Write + Send + 'static) -> io::Result<Self> {
        let (send, receive) = sync_channel(lines);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&receive, out))?;
        Ok(Self(send))
    }

    /// The one of this process, which the first caller makes.
    pub fn of_process(lines: usize) -> io::Result<Self> {
        if let Some(queue) = QUEUE.get() {
            return Ok(queue.clone());
        }
        let queue = Self::new(lines, io::stderr())?;
        Ok(QUEUE.get_or_init(|| queue).clone())
    }

    /// Waits until everything queued so far is written, but not for ever.
    pub fn flush(&self) {
        let (send, receive) = sync_channel(1);
        let mut message = Message::Flush(send);
        for _ in 0..TRIES {
            match self.0.try_send(message) {
                Ok(()) => {
                    // Too late or gone: either way there is nothing left to wait for.
                    let _ = receive.recv_timeout(FLUSH);
                    return;
                }
                Err(TrySendError::Full(unsent)) => message = unsent,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(AGAIN);
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.try_send(Message::Line(line.to_vec())) {
            Ok(()) => logs::emitted(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => logs::dropped(),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes until nobody can send any more.
fn write(from: &Receiver<Message>, mut out: impl Write) {
    while let Ok(message) = from.recv() {
        match message {
            // Standard error that is closed is nobody's to tell.
            Message::Line(line) => drop(out.write_all(&line)),
            Message::Flush(done) => {
                drop(out.flush());
                let _ = done.send(());
            }
        }
    }
}

/// Writes what is queued, before the process ends.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    /// Takes its first line only when the test lets it.
    struct Slow {
        gate: Option<(Arc<Barrier>, Arc<Barrier>)>,
        lines: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if let Some((begun, go)) = self.gate.take() {
                begun.wait();
                go.wait();
            }
            self.lines.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        let (begun, go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let lines = Arc::new(Mutex::default());
        let slow = Slow {
            gate: Some((begun.clone(), go.clone())),
            lines: Arc::clone(&lines),
        };
        let mut queue = Queue::new(2, slow).unwrap();
        let before = logs::counts();
        queue.write_all(b"1\n").unwrap();
        begun.wait();
        for line in [b"2\n", b"3\n", b"4\n"] {
            queue.write_all(line).unwrap();
        }
        let after = logs::counts();
        assert!(after.dropped > before.dropped && after.emitted >= before.emitted + 3);
        go.wait();
        queue.flush();
        let written = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert_eq!(written, "1\n2\n3\n");
    }
}
