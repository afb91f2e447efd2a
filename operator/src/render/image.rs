//! The image that the agents run.

use towpath_crds::{names, network_config::Images};

/// The agents' image: the operator's own, with the registry and the digest of the spec if they are set.
#[must_use]
pub fn agent_image(own: &str, images: &Images) -> String {
    if images.registry.is_none() && images.digest.is_none() {
        return own.to_owned();
    }
    let (repository, version) = split(own);
    let repository = match &images.registry {
        Some(registry) => format!("{registry}/{}", names::IMAGE_REPOSITORY),
        None => repository.to_owned(),
    };
    match &images.digest {
        Some(digest) => format!("{repository}@{digest}"),
        None => format!("{repository}{version}"),
    }
}

/// Repository, and `:tag` or `@digest` or both or nothing. A colon before the last slash is a port.
fn split(image: &str) -> (&str, &str) {
    let name_start = image.rfind('/').map_or(0, |slash| slash + 1);
    let end = image[name_start..].find([':', '@']).map_or(image.len(), |at| name_start + at);
    image.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_the_operators_unless_the_spec_names_registry_or_digest() {
        let digest = "sha256:00";
        let cases = [
            ("towpath.local/towpath:0.1.0", None, None, "towpath.local/towpath:0.1.0", "as the operator"),
            (
                "towpath.local/towpath:0.1.0",
                Some("r.example:5000/m"),
                None,
                "r.example:5000/m/towpath:0.1.0",
                "a mirror",
            ),
            ("r.example:5000/towpath:1", None, Some(digest), "r.example:5000/towpath@sha256:00", "pinned, with a port"),
            ("a/towpath@sha256:11", Some("b"), None, "b/towpath@sha256:11", "the operator is pinned"),
            ("a/towpath:1", Some("b"), Some(digest), "b/towpath@sha256:00", "both"),
            ("towpath", None, Some(digest), "towpath@sha256:00", "bare"),
        ];
        for (own, registry, pin, want, why) in cases {
            let images =
                Images { registry: registry.map(str::to_owned), digest: pin.map(str::to_owned), ..Images::default() };
            assert_eq!(agent_image(own, &images), want, "{why}");
        }
    }
}
