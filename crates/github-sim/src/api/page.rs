//! Lists in pages, with their `Link` header.

use super::request::Request;

/// How many entries a page has at most.
const MAX_PER_PAGE: usize = 100;
const DEFAULT_PER_PAGE: usize = 30;

/// The page that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    per_page: usize,
    page: usize,
}

impl Page {
    /// Reads `per_page` and `page`; what makes no sense is the default, as on GitHub.
    pub(crate) fn of(request: &Request) -> Self {
        let number = |name| request.query(name).and_then(|text| text.parse::<usize>().ok());
        Self {
            per_page: number("per_page")
                .filter(|n| *n > 0)
                .map_or(DEFAULT_PER_PAGE, |n| n.min(MAX_PER_PAGE)),
            page: number("page").filter(|n| *n > 0).unwrap_or(1),
        }
    }

    pub(crate) const fn per_page(&self) -> usize {
        self.per_page
    }

    /// The entries of this page.
    pub(crate) fn cut<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        let start = (self.page - 1).saturating_mul(self.per_page).min(all.len());
        let end = start.saturating_add(self.per_page).min(all.len());
        &all[start..end]
    }

    /// The `Link` header for a list of `total` entries, if it has more than one page.
    pub(crate) fn link(&self, request: &Request, total: usize) -> Option<String> {
        let last = total.div_ceil(self.per_page).max(1);
        let mut links = Vec::new();
        let mut add = |page: usize, rel: &str| {
            let address = request.address_with(&[("page", &page.to_string())]);
            links.push(format!("<{address}>; rel=\"{rel}\""));
        };
        if self.page > 1 {
            add((self.page - 1).min(last), "prev");
        }
        if self.page < last {
            add(self.page + 1, "next");
            add(last, "last");
        }
        if self.page > 1 {
            add(1, "first");
        }
        (!links.is_empty()).then(|| links.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &str) -> Request {
        Request::for_test("GET", &format!("/api/v3/app/installations?{query}"))
    }

    #[test]
    fn pages_link_to_each_other() {
        let all: Vec<u32> = (0..5).collect();
        let first = request("per_page=2");
        let page = Page::of(&first);
        assert_eq!(page.cut(&all), [0, 1]);
        assert_eq!(
            page.link(&first, 5).as_deref(),
            Some(
                "<http://sim/api/v3/app/installations?per_page=2&page=2>; rel=\"next\", \
                 <http://sim/api/v3/app/installations?per_page=2&page=3>; rel=\"last\""
            )
        );
        let last = request("per_page=2&page=3");
        assert_eq!(Page::of(&last).cut(&all), [4]);
        assert!(!Page::of(&last).link(&last, 5).expect("a way back").contains("next"));
        assert_eq!(Page::of(&request("per_page=2&page=9")).cut(&all), [0_u32; 0]);
    }

    #[test]
    fn nonsense_is_the_default() {
        let wrong = request("per_page=0&page=-1");
        assert_eq!(Page::of(&wrong), Page { per_page: 30, page: 1 });
        assert_eq!(Page::of(&request("per_page=1000")).per_page(), 100);
    }
}
