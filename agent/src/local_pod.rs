//! Endpoint files and requests of the CNI plugin, as the node knows them.

use towpath_core::model::ParseError;
use towpath_local::{Attachment as FileAttachment, EndpointFile, Reply, Request};
use towpath_node::{Attachment, CniCode, CniReply, CniRequest, LocalPod};

/// CNI's error code for an invalid environment variable.
const INVALID_ENVIRONMENT: u32 = 4;

/// The pod that an endpoint file records.
///
/// # Errors
/// If the container id is invalid.
pub fn local_pod(file: &EndpointFile) -> Result<LocalPod, ParseError> {
    let attachment = attachment(&file.attachment()?);
    Ok(LocalPod { attachment, endpoint: file.endpoint(), uid: file.pod_uid.clone() })
}

fn attachment(attachment: &FileAttachment) -> Attachment {
    Attachment { container_id: attachment.container_id().to_owned(), ifname: attachment.ifname().clone() }
}

/// The node's request, or the reply to one that does not concern the node.
pub(crate) fn cni_request(request: Request) -> Result<CniRequest, Reply> {
    match request {
        Request::Add { endpoint } => local_pod(&endpoint)
            .map(CniRequest::Add)
            .map_err(|error| Reply::error(INVALID_ENVIRONMENT, "the container id is invalid", &error.to_string())),
        // An attachment that cannot have been added is deleted already.
        Request::Del { container_id, ifname } => FileAttachment::new(&container_id, &ifname)
            .map(|deleted| CniRequest::Del(attachment(&deleted)))
            .map_err(|_| Reply::Ok),
        Request::Status => Ok(CniRequest::Status),
    }
}

/// The reply as it goes to the plugin.
pub(crate) fn cni_reply(reply: CniReply) -> Reply {
    match reply {
        CniReply::Ok => Reply::Ok,
        CniReply::Error { code, message, details } => {
            let code = match code {
                CniCode::TryAgainLater => 11,
                CniCode::NotAvailable => 50,
            };
            Reply::error(code, message, &details)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_an_invalid_container_id_is_answered_without_the_node() {
        let del = |id: &str| Request::Del { container_id: id.to_owned(), ifname: "eth0".to_owned() };
        assert!(matches!(cni_request(del("0af")), Ok(CniRequest::Del(deleted)) if deleted.container_id == "0af"));
        assert_eq!(cni_request(del("../a")), Err(Reply::Ok), "nothing has that name");
        let add = |id: &str| Request::Add {
            endpoint: EndpointFile {
                container_id: id.to_owned(),
                ifname: towpath_core::names::IfName::new("eth0").unwrap(),
                netns: "/run/netns/x".into(),
                network: "k8s-pod-network".to_owned(),
                namespace: "a".to_owned(),
                pod: "web".to_owned(),
                pod_uid: Some("u".to_owned()),
                host_interface: towpath_core::names::IfName::of_pod("a", "web"),
                addresses: vec![[10, 244, 1, 2].into()],
                mtu: 1450,
            },
        };
        let Ok(CniRequest::Add(pod)) = cni_request(add("0af")) else { panic!("the id is valid") };
        assert_eq!((pod.endpoint.pod.to_string().as_str(), pod.uid.as_deref()), ("a/web", Some("u")));
        assert!(matches!(cni_request(add("../a")), Err(Reply::Error { code: INVALID_ENVIRONMENT, .. })));
    }

    #[test]
    fn a_delayed_pod_is_tried_again_by_the_runtime() {
        for (code, number) in [(CniCode::TryAgainLater, 11), (CniCode::NotAvailable, 50)] {
            let reply = CniReply::Error { code, message: "m", details: "d".to_owned() };
            assert_eq!(cni_reply(reply), Reply::error(number, "m", "d"));
        }
        assert_eq!(cni_reply(CniReply::Ok), Reply::Ok);
    }
}
