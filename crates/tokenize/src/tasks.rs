//! Many items on several threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use infer_accel_tensor::threads;

use crate::error::{Result, TokenizeError};

/// A task of a batch has so much text, or one text that is longer: some ten microseconds, so that threads end together
/// and a signal is heeded soon, and so much that handing it out costs nothing beside it.
const TASK_BYTES: usize = 8 * 1024;

/// Calls `work` with parts of the items, each of [`TASK_BYTES`] or so by `bytes`, and the places of their results, on at
/// most `threads` threads; returns all results in order. `work` also gets the number of a part's first item.
///
/// `stop` is asked now and then on the calling thread; once it answers true, no other part is begun.
///
/// # Errors
/// [`TokenizeError::Interrupted`], or the error of the first part that has one.
pub(crate) fn in_tasks<I: Sync, T: Send + Default>(
    items: &[I],
    bytes: impl Fn(&I) -> usize,
    threads: usize,
    stop: &dyn Fn() -> bool,
    work: impl Fn(usize, &[I], &mut [T]) -> Result<()> + Sync,
) -> Result<Vec<T>> {
    let mut results = Vec::new();
    results.resize_with(items.len(), T::default);
    let ranges = divide(items, bytes);
    let mut rest = results.as_mut_slice();
    let tasks: Vec<Task<'_, I, T>> = ranges
        .into_iter()
        .map(|range| {
            let (results, left) = std::mem::take(&mut rest).split_at_mut(range.len());
            rest = left;
            Task {
                first: range.start,
                items: items.get(range).unwrap_or_default(),
                results: Mutex::new(results),
            }
        })
        .collect();
    let failed = Mutex::new(None);
    let run = |index: usize| {
        let Some(task) = tasks.get(index) else { return };
        let mut results = task.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = work(task.first, task.items, &mut results) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if failed.as_ref().is_none_or(|(earliest, _)| index < *earliest) {
                *failed = Some((index, error));
            }
        }
    };
    threads::parallel_for_interruptible(threads, tasks.len(), stop, run)
        .map_err(|threads::Interrupted| TokenizeError::Interrupted)?;
    drop(tasks);
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(results),
    }
}

struct Task<'t, I, T> {
    first: usize,
    items: &'t [I],
    /// Nobody waits for it: each task runs once.
    results: Mutex<&'t mut [T]>,
}

/// Consecutive parts of the items.
fn divide<I>(items: &[I], bytes: impl Fn(&I) -> usize) -> Vec<Range<usize>> {
    let mut tasks = Vec::new();
    let (mut start, mut size) = (0, 0_usize);
    for (index, item) in items.iter().enumerate() {
        size = size.saturating_add(bytes(item)).saturating_add(64); // an item costs something even where it is empty
        if size >= TASK_BYTES || index + 1 == items.len() {
            tasks.push(start..index + 1);
            (start, size) = (index + 1, 0);
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_all_texts_once_and_in_order() {
        let long = "x".repeat(3 * TASK_BYTES);
        let short = vec!["abc"; 5000];
        for texts in [&[][..], &["a"], &[&long, "", &long], &short] {
            let tasks = divide(texts, |text| text.len());
            assert!(tasks.iter().cloned().flatten().eq(0..texts.len()));
            assert!(tasks.iter().all(|task| !task.is_empty()));
        }
    }

    #[test]
    fn results_are_in_order_and_the_first_error_counts() {
        let numbers: Vec<usize> = (0..5000).collect();
        for threads in [1, 2, 7] {
            let double = |first: usize, part: &[usize], results: &mut [usize]| {
                assert_eq!(part.first(), Some(&first));
                part.iter().zip(results).for_each(|(number, result)| *result = 2 * number);
                Ok(())
            };
            let doubled = in_tasks(&numbers, |_| 1, threads, &|| false, double).unwrap();
            assert_eq!(doubled, numbers.iter().map(|number| 2 * number).collect::<Vec<_>>());
            let fail = |first: usize, part: &[usize], _: &mut [()]| match part.last() {
                Some(last) if *last >= 700 => Err(TokenizeError::UnassignedId { id: first as u32 }),
                _ => Ok(()),
            };
            let parts = divide(&numbers, |_| 1);
            let first = parts.iter().find(|part| part.contains(&700)).unwrap().start as u32;
            let outcome = in_tasks(&numbers, |_| 1, threads, &|| false, fail);
            assert!(matches!(outcome, Err(TokenizeError::UnassignedId { id }) if id == first));
        }
        let outcome = in_tasks(
            &[1],
            |_| 1,
            1,
            &|| true,
            |_, _, _: &mut [()]| {
                std::thread::sleep(std::time::Duration::from_millis(60));
                Ok(())
            },
        );
        assert!(matches!(outcome, Err(TokenizeError::Interrupted)));
    }
}
