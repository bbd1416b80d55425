//! Work on many texts at once, on as many processors as there are: parsing, hashing and checking
//! signatures is most of what an ingester computes, and none of it depends on the text before.

use std::sync::Arc;

use tokio::task::JoinHandle;

/// Items that are worth another processor.
const SHARE: usize = 256;
/// Items that are done at once; more would keep whoever else is served by this thread waiting.
const FEW: usize = 16;
/// Processors that one batch uses at most: the others have something to do as well.
const MOST: usize = 4;

/// What `each` makes of every item, in their order. A panic of `each` goes on here.
pub(crate) async fn map<T, R>(
    mut items: Vec<T>,
    each: impl Fn(T) -> R + Send + Sync + 'static,
) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let shares = (items.len() / SHARE).clamp(1, processors.min(MOST));
    if items.len() <= FEW {
        return items.into_iter().map(each).collect();
    }
    let total = items.len();
    let size = total.div_ceil(shares);
    let each = Arc::new(each);
    let mut running = Vec::with_capacity(shares);
    while !items.is_empty() {
        let rest = items.split_off(size.min(items.len()));
        let share = std::mem::replace(&mut items, rest);
        let each = Arc::clone(&each);
        let work = move || share.into_iter().map(|item| each(item)).collect::<Vec<R>>();
        running.push(tokio::task::spawn_blocking(work));
    }
    let mut all = Vec::with_capacity(total);
    for share in running {
        all.extend(joined(share).await);
    }
    all
}

/// What `work` makes, on a thread that serves nobody. A panic of it goes on here.
pub(crate) async fn aside<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<R>(running: JoinHandle<R>) -> R {
    match running.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it; half an answer would be taken for all of it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_comes_back_in_its_order() {
        for count in [0, 1, FEW, FEW + 1, SHARE - 1, SHARE, 3 * SHARE + 7, 10_000] {
            let doubled = map((0..count).collect(), |n: usize| n * 2).await;
            assert_eq!(doubled, (0..count).map(|n| n * 2).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    #[should_panic(expected = "no such number")]
    async fn a_panic_goes_on() {
        map((0..5_000).collect(), |n: usize| {
            assert!(n != 4_321, "no such number")
        })
        .await;
    }
}
