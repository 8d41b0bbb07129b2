//! What GitHub said last, by address, so that a conditional request costs nothing when nothing has
//! changed.
//!
//! Holds the few fields that Forrest reads, never whole answers: those are a hundred times larger.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;

/// The most pages that are remembered.
const PAGES_MAX: usize = 512;

/// The most items (jobs, runs, runners) that are remembered over all pages; about 500 bytes each.
const ITEMS_MAX: usize = 4_000;

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page<T> {
    /// What is on it.
    pub(crate) items: Arc<Vec<T>>,
    /// The next page.
    pub(crate) next: Option<Url>,
}

impl<T> Clone for Page<T> {
    fn clone(&self) -> Self {
        Self { items: Arc::clone(&self.items), next: self.next.clone() }
    }
}

/// A page with the `ETag` that it came with.
#[derive(Debug)]
pub(crate) struct Remembered<T> {
    pub(crate) etag: String,
    pub(crate) page: Page<T>,
}

struct Entry {
    etag: String,
    items: Arc<dyn Any + Send + Sync>,
    count: usize,
    next: Option<Url>,
    used: u64,
}

/// The pages by address.
#[derive(Default)]
pub(crate) struct Cache(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    by_url: HashMap<String, Entry>,
    items: usize,
    tick: u64,
}

impl Cache {
    /// What is known of `url`, if it was stored with items of this type.
    pub(crate) fn get<T: Send + Sync + 'static>(&self, url: &Url) -> Option<Remembered<T>> {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.tick += 1;
        let tick = pages.tick;
        let entry = pages.by_url.get_mut(url.as_str())?;
        entry.used = tick;
        let items = Arc::clone(&entry.items).downcast::<Vec<T>>().ok()?;
        let page = Page { items, next: entry.next.clone() };
        Some(Remembered { etag: entry.etag.clone(), page })
    }

    /// Remembers a page, and forgets those that were not asked for the longest.
    pub(crate) fn put<T: Send + Sync + 'static>(&self, url: &Url, etag: String, page: &Page<T>) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.remove(url.as_str());
        // An empty page counts too: its entry takes room.
        let count = page.items.len() + 1;
        if count > ITEMS_MAX {
            return;
        }
        while pages.by_url.len() >= PAGES_MAX || pages.items + count > ITEMS_MAX {
            let Some(oldest) =
                pages.by_url.iter().min_by_key(|(_, entry)| entry.used).map(|(url, _)| url.clone())
            else {
                break;
            };
            pages.remove(&oldest);
        }
        pages.tick += 1;
        let entry = Entry {
            etag,
            items: page.items.clone(),
            count,
            next: page.next.clone(),
            used: pages.tick,
        };
        pages.items += count;
        pages.by_url.insert(url.as_str().to_owned(), entry);
    }

    /// Forgets one page.
    pub(crate) fn forget(&self, url: &Url) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(url.as_str());
    }
}

impl Pages {
    fn remove(&mut self, url: &str) {
        if let Some(entry) = self.by_url.remove(url) {
            self.items -= entry.count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(n: usize) -> Url {
        Url::parse(&format!("http://localhost/{n}")).expect("a URL")
    }

    fn page(items: usize) -> Page<u32> {
        Page { items: Arc::new(vec![7; items]), next: None }
    }

    #[test]
    fn what_was_put_comes_back_with_its_etag_and_type() {
        let cache = Cache::default();
        cache.put(&url(1), "W/\"a\"".to_owned(), &page(2));
        let known = cache.get::<u32>(&url(1)).expect("it was put");
        assert_eq!((known.etag.as_str(), known.page.items.len()), ("W/\"a\"", 2));
        assert!(cache.get::<u64>(&url(1)).is_none(), "another type");
        assert!(cache.get::<u32>(&url(2)).is_none());
        cache.forget(&url(1));
        assert!(cache.get::<u32>(&url(1)).is_none());
    }

    #[test]
    fn both_bounds_hold_and_what_is_used_stays() {
        let cache = Cache::default();
        for n in 0..PAGES_MAX * 2 {
            cache.put(&url(n), "e".to_owned(), &page(0));
            assert!(cache.get::<u32>(&url(0)).is_some(), "used all the time, forgotten at {n}");
        }
        assert_eq!(cache.0.lock().expect("unpoisoned").by_url.len(), PAGES_MAX);
        for n in 0..100 {
            cache.put(&url(n), "e".to_owned(), &page(100));
        }
        let pages = cache.0.lock().expect("unpoisoned");
        assert!(pages.items <= ITEMS_MAX);
        assert_eq!(pages.items, pages.by_url.values().map(|e| e.count).sum::<usize>());
    }

    #[test]
    fn a_page_beyond_the_bound_is_not_remembered() {
        let cache = Cache::default();
        cache.put(&url(1), "e".to_owned(), &page(1));
        cache.put(&url(1), "f".to_owned(), &page(ITEMS_MAX));
        assert!(cache.get::<u32>(&url(1)).is_none());
        assert_eq!(cache.0.lock().expect("unpoisoned").items, 0);
    }
}
