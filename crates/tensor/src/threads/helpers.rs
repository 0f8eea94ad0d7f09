//! Work that threads of the pool may join while its owner does it.
//!
//! The owner never waits for a thread that has not begun: a sleeping thread takes tens of microseconds to wake, and
//! where the work is done before that, the gate is closed and whoever comes later goes away again. That is what a
//! scope of the pool cannot do: it waits for every job, begun or not.
#![allow(unsafe_code)] // the helpers borrow from the owner's stack

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use rayon::ThreadPool;

/// Nobody may enter any more.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// How often the owner looks whether the last helper has left before it lets itself be woken: some tens of
/// microseconds, as long as waking takes.
const LOOKS: usize = 1000;

/// What the owner and its helpers share; it outlives both.
struct Gate {
    /// Helpers inside, and [`CLOSED`].
    inside: AtomicUsize,
    owner: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The helpers' work, whose lifetime the gate stands for.
struct Work(*const (dyn Fn() + Sync));

// SAFETY: what it points to may be called by several threads at once.
unsafe impl Send for Work {}

/// Does `own` on this thread; up to `helpers` threads of the pool do `help` meanwhile. When it returns, none of them does
/// any more. A panic of a helper is raised again here.
pub(super) fn run(pool: &ThreadPool, helpers: usize, help: &(dyn Fn() + Sync), own: impl FnOnce()) {
    let gate = Arc::new(Gate {
        inside: AtomicUsize::new(0),
        owner: std::thread::current(),
        panic: Mutex::new(None),
    });
    // Whatever happens from here on, the gate is closed and empty before the borrow ends.
    let closing = Closing(&gate);
    for _ in 0..helpers {
        let (gate, work) = (Arc::clone(&gate), Work(erased(help)));
        // The whole of `work` is taken along, not its pointer alone.
        pool.spawn(move || gate.help(&work));
    }
    own();
    drop(closing);
    let panic = gate.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// The same pointer with a lifetime that nobody checks.
fn erased<'w>(help: &'w (dyn Fn() + Sync + 'w)) -> *const (dyn Fn() + Sync + 'static) {
    // SAFETY: two types of one pointer, which differ in the lifetime alone. It is used only inside an open gate.
    unsafe { std::mem::transmute::<&'w (dyn Fn() + Sync + 'w), *const (dyn Fn() + Sync + 'static)>(help) }
}

impl Gate {
    /// Does the work, if the gate is still open.
    fn help(&self, work: &Work) {
        let enter = |inside: usize| (inside & CLOSED == 0).then_some(inside + 1);
        if self.inside.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
            return;
        }
        // SAFETY: the gate was open: the owner has not left `run`, and will not before `inside` is back to 0.
        let help = unsafe { &*work.0 };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(help)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        if self.inside.fetch_sub(1, Ordering::Release) == CLOSED | 1 {
            self.owner.unpark();
        }
    }
}

/// Closes the gate, and waits for those inside.
struct Closing<'g>(&'g Gate);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let Gate { inside, .. } = self.0;
        inside.fetch_or(CLOSED, Ordering::Relaxed);
        let empty = || inside.load(Ordering::Acquire) == CLOSED;
        if (0..LOOKS).any(|_| {
            empty() || {
                std::hint::spin_loop();
                false
            }
        }) {
            return;
        }
        while !empty() {
            std::thread::park();
        }
    }
}
