"""The cluster files of the guide are what Ray and KubeRay take.

Ray's is checked by Ray itself. KubeRay's definition is not in any package: a schema of the fields
that are used is written here, after its Go types; what Kubernetes knows of pods is in part below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "cluster"

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # numbers in quotes, too


def fields(*required: str, **of: Any) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": of,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


PROBE = fields(
    httpGet=fields("port", path=TEXT, port={"type": ["string", "integer"]}),
    tcpSocket=fields("port", port={"type": ["string", "integer"]}),
    initialDelaySeconds=COUNT,
    periodSeconds=COUNT,
    failureThreshold=COUNT,
)
SECRET = fields("secretKeyRef", secretKeyRef=fields("name", "key", name=TEXT, key=TEXT))
CONTAINER = fields(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(fields("name", name=TEXT, value=TEXT, valueFrom=SECRET)),
    ports=listed(fields("containerPort", name=TEXT, containerPort=COUNT)),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    resources=fields(requests=TEXTS, limits=TEXTS),
    volumeMounts=listed(
        fields("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})
    ),
)
CLAIM = fields("claimName", claimName=TEXT, readOnly={"type": "boolean"})
POD = fields(
    "spec",
    metadata=fields(annotations=TEXTS, labels=TEXTS),
    spec=fields(
        "containers",
        containers=listed(CONTAINER),
        volumes=listed(fields("name", name=TEXT, persistentVolumeClaim=CLAIM)),
        affinity={"type": "object"},
        terminationGracePeriodSeconds=COUNT,
    ),
)
CLUSTER = fields(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=fields("name", name=TEXT),
    spec=fields(
        "headGroupSpec",
        rayVersion=TEXT,
        headGroupSpec=fields("rayStartParams", "template", rayStartParams=TEXTS, template=POD),
        workerGroupSpecs=listed(
            fields(
                *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
                groupName=TEXT,
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                rayStartParams=TEXTS,
                template=POD,
            )
        ),
    ),
)
POLICY = fields(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "networking.k8s.io/v1"},
    kind={"const": "NetworkPolicy"},
    metadata=fields("name", name=TEXT),
    spec=fields(
        "podSelector",
        podSelector={"type": "object"},
        policyTypes=listed({"enum": ["Ingress", "Egress"]}),
        ingress=listed(
            fields(
                **{"from": listed(fields(podSelector={"type": "object"}))},
                ports=listed(fields(port=COUNT, protocol={"enum": ["TCP", "UDP", "SCTP"]})),
            )
        ),
    ),
)


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_the_cluster_file_is_one_of_rays() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    config = yaml.safe_load((EXAMPLES / "ray.yaml").read_text("utf-8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_manifest_has_the_fields_of_kuberay() -> None:
    cluster, policy = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text("utf-8"))
    jsonschema.validate(cluster, CLUSTER)
    jsonschema.validate(policy, POLICY)
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    [group] = cluster["spec"]["workerGroupSpecs"]
    worker = group["template"]["spec"]["containers"][0]
    for same in ("image", "env", "resources", "volumeMounts"):
        assert head[same] == worker[same]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert int(group["rayStartParams"]["node-manager-port"]) == worker["readinessProbe"][
        "tcpSocket"
    ].get("port")
    ports = [each["port"] for rule in policy["spec"]["ingress"] for each in rule.get("ports", [])]
    assert ports == [each["containerPort"] for each in head["ports"] if each["name"] == "http"]
