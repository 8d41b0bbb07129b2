//! Repositories.

use serde_json::{Map, Value, json};

use super::{node_id, user};
use crate::model::{Repository, World};

/// The addresses below a repository's own, by field, with what follows the repository's address.
const PLACES: &[(&str, &str)] = &[
    ("forks_url", "forks"),
    ("keys_url", "keys{/key_id}"),
    ("collaborators_url", "collaborators{/collaborator}"),
    ("teams_url", "teams"),
    ("hooks_url", "hooks"),
    ("issue_events_url", "issues/events{/number}"),
    ("events_url", "events"),
    ("assignees_url", "assignees{/user}"),
    ("branches_url", "branches{/branch}"),
    ("tags_url", "tags"),
    ("blobs_url", "git/blobs{/sha}"),
    ("git_tags_url", "git/tags{/sha}"),
    ("git_refs_url", "git/refs{/sha}"),
    ("trees_url", "git/trees{/sha}"),
    ("statuses_url", "statuses/{sha}"),
    ("languages_url", "languages"),
    ("stargazers_url", "stargazers"),
    ("contributors_url", "contributors"),
    ("subscribers_url", "subscribers"),
    ("subscription_url", "subscription"),
    ("commits_url", "commits{/sha}"),
    ("git_commits_url", "git/commits{/sha}"),
    ("comments_url", "comments{/number}"),
    ("issue_comment_url", "issues/comments{/number}"),
    ("contents_url", "contents/{+path}"),
    ("compare_url", "compare/{base}...{head}"),
    ("merges_url", "merges"),
    ("archive_url", "{archive_format}{/ref}"),
    ("downloads_url", "downloads"),
    ("issues_url", "issues{/number}"),
    ("pulls_url", "pulls{/number}"),
    ("milestones_url", "milestones{/number}"),
    ("notifications_url", "notifications{?since,all,participating}"),
    ("labels_url", "labels{/name}"),
    ("releases_url", "releases{/id}"),
    ("deployments_url", "deployments"),
];

/// What is the same for all repositories here.
fn fixed() -> Value {
    json!({
        "homepage": null,
        "size": 0,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": null,
        "has_issues": true,
        "has_projects": true,
        "has_downloads": true,
        "has_wiki": true,
        "has_pages": false,
        "forks_count": 0,
        "mirror_url": null,
        "archived": false,
        "disabled": false,
        "open_issues_count": 0,
        "license": null,
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": "main",
        "is_template": false,
        "web_commit_signoff_required": false,
        "topics": [],
        "custom_properties": {},
    })
}

/// A repository, in full: for every place that shows one.
pub(crate) fn repository(world: &World, repo: &Repository) -> Value {
    let settings = &world.settings;
    let full_name = repo.full_name();
    let api = format!("{}/repos/{full_name}", settings.api_url);
    let html = format!("{}/{full_name}", settings.html_url);
    let created = repo.created_at.iso();
    let owner = world.accounts.get(&repo.owner.to_lowercase());
    let own = json!({
        "id": repo.id.0,
        "node_id": node_id("Repository", repo.id.0),
        "name": repo.name,
        "full_name": full_name,
        "private": repo.private,
        "owner": owner.map(|account| user(settings, account)),
        "html_url": html,
        "description": null,
        "fork": repo.fork,
        "url": api,
        "created_at": created,
        "updated_at": created,
        "pushed_at": created,
        "git_url": format!("git://github.invalid/{full_name}.git"),
        "ssh_url": format!("git@github.invalid:{full_name}.git"),
        "clone_url": format!("{html}.git"),
        "svn_url": html,
        "visibility": if repo.private { "private" } else { "public" },
    });
    let mut shape = Map::new();
    for part in [own, fixed()] {
        if let Value::Object(part) = part {
            shape.extend(part);
        }
    }
    for (field, place) in PLACES {
        shape.insert((*field).to_owned(), Value::String(format!("{api}/{place}")));
    }
    Value::Object(shape)
}
