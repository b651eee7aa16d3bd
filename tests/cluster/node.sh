#!/usr/bin/env bash
# A real single-node Kubernetes in network, mount, PID and UTS namespaces of its own. Usage: node.sh RUN_DIR BIN_DIR REGISTRY_DIR
#
# cluster.py starts it and ends it. It re-executes itself under unshare; that process is PID 1 inside, so killing it ends everything,
# and no rule, route, mount or process of the cluster is ever outside. There is no way out of its network: nothing in it reaches
# another machine. RUN_DIR/node.pid holds that PID as seen from outside; RUN_DIR/ready appears when the node is Ready.
set -euo pipefail
RUN=$1 BIN=$2 REGISTRY=$3
if [[ ${4:-} != inside ]]; then
  exec unshare --net --mount --pid --uts --fork --kill-child --propagation private "$0" "$RUN" "$BIN" "$REGISTRY" inside
fi

NODE_IP=172.30.0.2 POD_CIDR=10.244.0.0/16 SERVICE_CIDR=10.96.0.0/16
read -r outer_pid _ </proc/self/stat # /proc is still the outer one, so this is our PID out there
echo "$outer_pid" >"$RUN/node.pid"
mount -t proc proc /proc
mount -t tmpfs tmpfs /run # shims, network namespaces and locks of containerd live here, whatever its settings say
mkdir -p "$RUN"/{etcd,pki,kubelet,containerd,cni,cni-state,log,pod-logs} /var/lib/kubelet /var/log/containers /var/log/pods
mount --bind "$RUN/kubelet" /var/lib/kubelet
mount -t tmpfs tmpfs /var/log/containers
printf 'nameserver %s\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n' "$NODE_IP" >"$RUN/resolv.conf"
mount --bind "$RUN/resolv.conf" "$(readlink -f /etc/resolv.conf)" 2>/dev/null || true # names of Services for commands run inside
hostname node0
ip link set lo up
ip link add node0 type bridge # a `dummy` link would do, but not every kernel has one
ip addr add $NODE_IP/24 dev node0
ip link set node0 up
ip route add default dev node0 # goes nowhere; Service addresses need some route to be rewritten on
echo 1 >/proc/sys/net/ipv4/ip_forward

# --- certificates and kubeconfigs ---
cd "$RUN/pki"
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 30 2>/dev/null
certificate() { # name subject subject-alternative-names
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature,keyEncipherment' "$3") 2>/dev/null
}
certificate admin /O=system:masters/CN=admin DNS:admin
certificate apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$NODE_IP,IP:10.96.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
certificate kubelet /O=system:nodes/CN=system:node:node0 "DNS:node0,IP:$NODE_IP"
certificate front-proxy /CN=front-proxy DNS:front-proxy
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
kubeconfig() { # name
  cat >"$RUN/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $RUN/pki/ca.crt}}]
users: [{name: test, user: {client-certificate: $RUN/pki/$1.crt, client-key: $RUN/pki/$1.key}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
YAML
}
kubeconfig admin
kubeconfig kubelet

spawn() { # name command...: in the background, its output in RUN/log/name
  "${@:2}" >"$RUN/log/$1" 2>&1 &
}
kubectl() { "$BIN/kubectl" --kubeconfig "$RUN/admin.kubeconfig" "$@"; }

# --- control plane ---
spawn etcd "$BIN/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
spawn apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=0.0.0.0 \
  --advertise-address=$NODE_IP --tls-cert-file=apiserver.crt --tls-private-key-file=apiserver.key --client-ca-file=ca.crt \
  --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
  --service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC \
  --service-cluster-ip-range=$SERVICE_CIDR --allow-privileged=true --profiling=false \
  --kubelet-client-certificate=admin.crt --kubelet-client-key=admin.key --kubelet-preferred-address-types=InternalIP \
  --requestheader-client-ca-file=ca.crt --requestheader-allowed-names=front-proxy \
  --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
  --requestheader-extra-headers-prefix=X-Remote-Extra- --enable-aggregator-routing \
  --proxy-client-cert-file=front-proxy.crt --proxy-client-key-file=front-proxy.key

# --- what needs no API server starts meanwhile ---
cat >"$RUN/registry.yaml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $REGISTRY}, delete: {enabled: true}}
http: {addr: ":5000"}
YAML
spawn registry docker-registry serve "$RUN/registry.yaml"
cat >"$RUN/containerd.toml" <<TOML
version = 2
root = "$RUN/containerd/root"
state = "/run/containerd"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "127.0.0.1:5000/pause:1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$RUN/cni"
TOML
# ptp, not bridge: every packet between pods is routed, so Services work without the kernel's br_netfilter.
cat >"$RUN/cni/10-pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "$RUN/cni-state", "ranges": [[{"subnet": "10.244.0.0/24"}]],
   "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
spawn containerd containerd --config "$RUN/containerd.toml"
until [[ $(kubectl get --raw=/readyz 2>/dev/null) == ok ]]; do sleep 0.2; done

spawn controller-manager "$BIN/kube-controller-manager" --kubeconfig "$RUN/admin.kubeconfig" --leader-elect=false \
  --service-account-private-key-file=sa.key --root-ca-file=ca.crt --use-service-account-credentials \
  --cluster-cidr=$POD_CIDR --allocate-node-cidrs --bind-address=127.0.0.1
spawn scheduler "$BIN/kube-scheduler" --kubeconfig "$RUN/admin.kubeconfig" --leader-elect=false --bind-address=127.0.0.1

# --- node ---
until ctr -a "$RUN/containerd.sock" version >/dev/null 2>&1; do sleep 0.1; done
cat >"$RUN/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $RUN/pki/kubelet.crt
tlsPrivateKeyFile: $RUN/pki/kubelet.key
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$RUN/containerd.sock
clusterDNS: [$NODE_IP]
clusterDomain: cluster.local
resolvConf: /dev/null
localStorageCapacityIsolation: ${LOCAL_STORAGE_ISOLATION:-true}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
podLogsDir: $RUN/pod-logs
oomScoreAdj: 0
YAML
spawn kubelet "$BIN/kubelet" --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubelet.kubeconfig" --hostname-override node0 \
  --node-ip $NODE_IP --root-dir /var/lib/kubelet --v=2
cat >"$RUN/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${PROXY_MODE:-nftables}
clusterCIDR: $POD_CIDR
hostnameOverride: node0
clientConnection: {kubeconfig: $RUN/admin.kubeconfig}
conntrack: {maxPerCore: 0, min: 0}
YAML
spawn proxy "$BIN/kube-proxy" --config "$RUN/proxy.yaml"
cat >"$RUN/Corefile" <<CONF
.:53 {
  bind $NODE_IP
  errors
  kubernetes cluster.local {
    kubeconfig $RUN/admin.kubeconfig
  }
}
CONF
spawn coredns "$BIN/coredns" -conf "$RUN/Corefile"

until kubectl get serviceaccount default >/dev/null 2>&1; do sleep 0.2; done
until kubectl wait --for=condition=Ready node/node0 --timeout=60s >/dev/null 2>&1; do sleep 0.2; done
touch "$RUN/ready"
wait
