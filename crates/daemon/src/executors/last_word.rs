//! Something of which only the latest word counts.

use std::sync::{Mutex, PoisonError};

/// What is to be passed on to somebody, by tasks that may overtake each other: the last word that was said is the
/// last one that is passed on, and each at most once.
#[derive(Debug)]
pub(crate) struct LastWord<T> {
    word: Mutex<Option<T>>,
    /// Held while a word is passed on.
    passing: tokio::sync::Mutex<()>,
}

impl<T> LastWord<T> {
    pub(crate) fn new() -> Self {
        Self { word: Mutex::new(None), passing: tokio::sync::Mutex::new(()) }
    }

    /// Says it. Afterwards somebody has to call [`LastWord::pass_on`].
    pub(crate) fn say(&self, word: T) {
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
    }

    /// Passes on what was said last, unless somebody else has done so already.
    pub(crate) async fn pass_on(&self, pass: impl AsyncFnOnce(T)) {
        let _passing = self.passing.lock().await;
        let word = self.word.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(word) = word {
            pass(word).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_word_that_was_said_last_arrives_last() {
        let (word, arrived) = (LastWord::new(), RefCell::new(Vec::new()));
        let pass_on = || word.pass_on(async |word| arrived.borrow_mut().push(word));
        word.say(1);
        let first = pass_on();
        word.say(2);
        let second = pass_on();
        // Its task overtakes that of the first one.
        second.await;
        first.await;
        assert_eq!(arrived.into_inner(), [2]);
    }

    #[tokio::test]
    async fn a_word_that_takes_long_is_not_overtaken() {
        let (word, arrived) = (LastWord::new(), RefCell::new(Vec::new()));
        let (go_on, slow) = oneshot::channel::<()>();
        word.say(1);
        let first = word.pass_on(async |word| {
            let _ = slow.await;
            arrived.borrow_mut().push(word);
        });
        let second = async {
            word.say(2);
            word.pass_on(async |word| arrived.borrow_mut().push(word)).await;
        };
        let let_go = async { go_on.send(()).expect("somebody waits for it") };
        tokio::join!(first, second, let_go);
        assert_eq!(arrived.into_inner(), [1, 2]);
    }
}
