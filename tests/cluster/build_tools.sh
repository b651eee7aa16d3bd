#!/usr/bin/env bash
# Builds the programs of the test cluster with Go from pinned modules: build_tools.sh [--dir] [NAME...]
#
# Without names it builds all of them; with --dir it only prints the folder they belong in and builds nothing.
# A program is rebuilt only when its pin (version and flags, kept beside it as NAME.pin) changed. A second call waits for the first.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/tools"

pinned() { awk -v module="$1" '$1 == "require" && $2 == module {print $3}' go.mod; }
kubernetes=$(pinned k8s.io/kubernetes)
etcd=$(pinned go.etcd.io/etcd/server/v3)
coredns=v1.15.0
helm=v4.3.1

folder=${TORCHMODEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torchmodel}/bin-${kubernetes#v}
if [[ ${1:-} == --dir ]]; then echo "$folder"; exit; fi

# The version stamp matters: without it the server says v0.0.0 and clients' version checks fail.
stamp=k8s.io/component-base/version
IFS=. read -r major minor _ <<<"${kubernetes#v}"
kubernetes_flags="-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean"

pin() { # name -> what identifies this build
  case $1 in
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kube-proxy | kubectl) echo "$kubernetes $kubernetes_flags" ;;
    etcd) echo "$etcd" ;;
    coredns) echo "$coredns" ;;
    helm) echo "$helm" ;;
    *) echo "$1: not one of ${all[*]}" >&2; return 2 ;;
  esac
}

build() { # name folder
  case $1 in
    etcd) go build -trimpath -ldflags "-s -w" -o "$2/etcd" go.etcd.io/etcd/server/v3 ;;
    coredns) GOBIN=$2 go install -trimpath -ldflags "-s -w" "github.com/coredns/coredns@$coredns" ;;
    helm) GOBIN=$2 go install -trimpath -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$helm" "helm.sh/helm/v4/cmd/helm@$helm" ;;
    *) go build -trimpath -ldflags "$kubernetes_flags" -o "$2/$1" "k8s.io/kubernetes/cmd/$1" ;;
  esac
}

is_built() { [[ -x $folder/$1 && $(cat "$folder/$1.pin" 2>/dev/null) == "$(pin "$1")" ]]; }

all=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl coredns helm)

main() {
  local name missing=()
  for name in "$@"; do
    pin "$name" >/dev/null
    if is_built "$name"; then echo "$name: there"; else missing+=("$name"); fi
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0

  mkdir -p "$folder"
  exec 9>"$folder/.lock"
  flock 9
  building=$(mktemp -d "$folder/.building.XXXXXX")
  trap 'rm -rf "$building"' EXIT
  export CGO_ENABLED=0
  for name in "${missing[@]}"; do
    if is_built "$name"; then echo "$name: built meanwhile"; continue; fi
    SECONDS=0
    build "$name" "$building" 9>&- 2> >(grep -v '^go: downloading' >&2)
    rm -f "$folder/$name.pin"
    mv "$building/$name" "$folder/$name"
    pin "$name" >"$folder/$name.pin"
    echo "$name: built in $SECONDS s"
  done
}

[[ $# -gt 0 ]] || set -- "${all[@]}"
main "$@"
