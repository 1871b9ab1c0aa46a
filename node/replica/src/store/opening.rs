//! Opening an engine may take long, and once in a while it never ends (a damaged MANIFEST may be read for ever, see
//! ARCHITECTURE): whoever waits is told.

use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Far longer than it takes to read the logs of a healthy engine.
pub const SAY_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Opening {
    over: Mutex<bool>,
    ended: Condvar,
}

/// Runs `open`; as long as it takes, says every `say_after` that it does.
pub fn watched<T>(path: &Path, say_after: Duration, open: impl FnOnce() -> T) -> T {
    let opening = Opening::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&opening, path, say_after));
        let _over = Over(&opening);
        open()
    })
}

/// When this is dropped, also by a panic.
struct Over<'a>(&'a Opening);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *self.0.over.lock() = true;
        self.0.ended.notify_all();
    }
}

fn watch(opening: &Opening, path: &Path, say_after: Duration) {
    let begun = Instant::now();
    let mut over = opening.over.lock();
    while !*over {
        if opening.ended.wait_for(&mut over, say_after).timed_out() {
            tracing::warn!(
                path = %path.display(),
                seconds = begun.elapsed().as_secs(),
                "the engine is not open yet: it reads its log; if that lasts while the disk is idle, a file is damaged: \
                 replace the node, see docs/operations/nodes.md"
            );
        }
    }
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
