//! Opening an engine may take long, and once in a while it never ends (a damaged MANIFEST may be read for ever, see
//! ARCHITECTURE): whoever waits is told.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Far longer than it takes to read the logs of a healthy engine.
pub const SAY_AFTER: Duration = Duration::from_secs(60);

/// Runs `open`; as long as it takes, says every `say_after` that it does.
pub fn watched<T>(path: &Path, say_after: Duration, open: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (opened, waiting) = channel::<()>();
        scope.spawn(move || {
            let begun = Instant::now();
            while waiting.recv_timeout(say_after) == Err(RecvTimeoutError::Timeout) {
                let seconds = begun.elapsed().as_secs();
                tracing::warn!(
                    path = %path.display(),
                    seconds,
                    "the engine is not open yet: it reads its log; if that lasts while the disk is idle, a file is damaged: \
                     replace the node, see docs/operations/nodes.md"
                );
            }
        });
        let result = open();
        drop(opened);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_what_it_watches() {
        let slow = || {
            std::thread::sleep(Duration::from_millis(30));
            7
        };
        assert_eq!(watched(Path::new("state"), Duration::from_millis(10), slow), 7);
        assert_eq!(watched(Path::new("state"), SAY_AFTER, || 8), 8);
    }
}
