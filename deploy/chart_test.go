package deploy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

const chartDir = "helm/felix"

// render returns the objects of a release, by kind and name. values are lines of YAML, over those of the chart.
func render(t *testing.T, values string) (map[string]any, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	var given map[string]any
	if err := yaml.UnmarshalStrict([]byte(values), &given); err != nil {
		t.Fatal(err)
	}
	top, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Name: "r", Namespace: "ns", IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, top)
	if err != nil {
		return nil, err
	}
	objects := make(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".txt") {
			continue
		}
		for doc := range strings.SplitSeq(files[name], "\n---\n") {
			if strings.TrimSpace(doc) == "" {
				continue
			}
			add(t, objects, name, doc)
		}
	}
	return objects, nil
}

// add decodes an object into the type that Kubernetes has for it: a field that the type lacks is an error.
func add(t *testing.T, objects map[string]any, file, doc string) {
	t.Helper()
	var head struct {
		APIVersion string
		Kind       string
		Metadata   struct{ Name string }
	}
	if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, doc)
	}
	var object any
	switch head.APIVersion + " " + head.Kind {
	case "v1 ConfigMap":
		object = &corev1.ConfigMap{}
	case "v1 Service":
		object = &corev1.Service{}
	case "apps/v1 StatefulSet":
		object = &appsv1.StatefulSet{}
	case "policy/v1 PodDisruptionBudget":
		object = &policyv1.PodDisruptionBudget{}
	case "networking.k8s.io/v1 NetworkPolicy":
		object = &networkingv1.NetworkPolicy{}
	case "monitoring.coreos.com/v1 ServiceMonitor":
		object = &map[string]any{}
	default:
		t.Fatalf("%s: unexpected %s %s", file, head.APIVersion, head.Kind)
	}
	if err := yaml.UnmarshalStrict([]byte(doc), object); err != nil {
		t.Errorf("%s: %v\n%s", file, err, doc)
	}
	if problems := validation.IsDNS1123Subdomain(head.Metadata.Name); problems != nil {
		t.Errorf("%s: name %q: %v", file, head.Metadata.Name, problems)
	}
	objects[head.Kind+" "+head.Metadata.Name] = object
}

// everything turns on what is off by default.
const everything = `
fullnameOverride: b
imagePullSecrets: [{name: registry}]
config: {cache_max_bytes: 134217728}
env: {FELIX_LOG_FORMAT: json, GOMAXPROCS: 2}
tls: {clientCA: true}
service:
  type: LoadBalancer
  nodePort: 30500
  annotations: {a: b}
  loadBalancerClass: x.io/y
  loadBalancerSourceRanges: [10.0.0.0/8]
metrics: {tokenSecret: token, serviceMonitor: {enabled: true, labels: {release: prometheus}}}
podDisruptionBudget: {enabled: true}
networkPolicy:
  enabled: true
  clients: [{namespaceSelector: {}}]
  metrics: [{podSelector: {matchLabels: {app: prometheus}}}]
podLabels: {team: x}
podAnnotations: {c: d}
priorityClassName: high
nodeSelector: {disk: ssd}
tolerations: [{key: k, operator: Exists}]
affinity: {nodeAffinity: {}}
`

func TestChart(t *testing.T) {
	for name, c := range map[string]struct {
		values string
		kinds  []string
	}{
		"default": {"", []string{"ConfigMap r-felix-catalog", "ConfigMap r-felix-config", "Service r-felix", "Service r-felix-pods", "StatefulSet r-felix"}},
		"everything": {everything, []string{
			"ConfigMap b-catalog", "ConfigMap b-config", "NetworkPolicy b", "PodDisruptionBudget b", "Service b", "Service b-pods", "ServiceMonitor b", "StatefulSet b",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := render(t, c.values)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(objects)); !slices.Equal(got, c.kinds) {
				t.Errorf("rendered %q, want %q", got, c.kinds)
			}
			for _, object := range objects {
				if set, ok := object.(*appsv1.StatefulSet); ok {
					checkReferences(t, objects, set)
				}
			}
		})
	}
}

// checkReferences finds what the objects call each other by.
func checkReferences(t *testing.T, objects map[string]any, set *appsv1.StatefulSet) {
	pod := set.Spec.Template
	has := func(what string, selector map[string]string) {
		for k, v := range selector {
			if pod.Labels[k] != v {
				t.Errorf("%s selects %s=%s, the pod has %q", what, k, v, pod.Labels[k])
			}
		}
		if len(selector) == 0 {
			t.Errorf("%s selects nothing", what)
		}
	}
	ports := make(map[string]corev1.ContainerPort)
	container := pod.Spec.Containers[0]
	for _, p := range container.Ports {
		ports[p.Name] = p
	}
	has("StatefulSet", set.Spec.Selector.MatchLabels)
	if objects["Service "+set.Spec.ServiceName] == nil {
		t.Errorf("there is no Service %s", set.Spec.ServiceName)
	}
	for name, object := range objects {
		switch o := object.(type) {
		case *corev1.Service:
			has(name, o.Spec.Selector)
			for _, p := range o.Spec.Ports {
				if to, ok := ports[p.TargetPort.StrVal]; !ok || to.Protocol != p.Protocol {
					t.Errorf("%s: port %s leads to %q, which is %v", name, p.Name, p.TargetPort.StrVal, to)
				}
			}
		case *policyv1.PodDisruptionBudget:
			has(name, o.Spec.Selector.MatchLabels)
		case *networkingv1.NetworkPolicy:
			has(name, o.Spec.PodSelector.MatchLabels)
			for _, rule := range o.Spec.Ingress {
				for _, p := range rule.Ports {
					if to, ok := ports[p.Port.StrVal]; !ok || to.Protocol != *p.Protocol {
						t.Errorf("%s: port %q is %v", name, p.Port.StrVal, to)
					}
				}
			}
		}
	}
	for _, p := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
		if to, ok := ports[p.HTTPGet.Port.StrVal]; !ok || to.Protocol != corev1.ProtocolTCP {
			t.Errorf("a probe goes to %q, which is %v", p.HTTPGet.Port.StrVal, to)
		}
	}
	volumes := make(map[string]bool)
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
		if m := v.ConfigMap; m != nil && objects["ConfigMap "+m.Name] == nil {
			t.Errorf("there is no ConfigMap %s", m.Name)
		}
	}
	for _, m := range container.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("there is no volume %s", m.Name)
		}
	}
	var wait int64
	if container.Lifecycle != nil {
		wait = container.Lifecycle.PreStop.Sleep.Seconds
	}
	if grace := *pod.Spec.TerminationGracePeriodSeconds; wait+20 >= grace {
		t.Errorf("killed %d s after a wait of %d s and a drain of 20 s have begun", grace, wait)
	}
}

// A variable with credentials comes from a secret, and not from the values.
func TestChartTakesVariablesFromSecrets(t *testing.T) {
	objects, err := render(t, "env: {A: 1, OTEL_EXPORTER_OTLP_HEADERS: {valueFrom: {secretKeyRef: {name: collector, key: headers}}}}")
	if err != nil {
		t.Fatal(err)
	}
	set, ok := objects["StatefulSet r-felix"].(*appsv1.StatefulSet)
	if !ok {
		t.Fatal("there is no StatefulSet")
	}
	env := set.Spec.Template.Spec.Containers[0].Env
	if len(env) != 2 || env[0].Value != "1" || env[1].ValueFrom == nil || env[1].ValueFrom.SecretKeyRef.Name != "collector" || env[1].ValueFrom.SecretKeyRef.Key != "headers" {
		t.Errorf("rendered %+v", env)
	}
}

func TestChartRefuses(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{"shutdown: {drainSeconds: 25}", "must be less than gracePeriodSeconds"},
		{"shutdown: {drainSeconds: 0}", "drainSeconds"},
		{"shutdown: {drainSeconds: 20s}", "drainSeconds"},
		{"replicas: 2", "replicas"},
		{"image: {name: x}", "name"},
		{"image: {pullPolicy: Sometimes}", "pullPolicy"},
		{"tls: {secretName: ''}", "secretName"},
		{"tls: {secretName: Felix}", "secretName"},
		{"config: {quic_bind: '0.0.0.0:1'}", "invalid propertyName 'quic_bind'"},
		{"config: {tls_cert_file: x}", "invalid propertyName 'tls_cert_file'"},
		{"env: {lower: x}", "invalid propertyName 'lower'"},
		{"env: {A: {from: x}}", "env"},
		{"service: {type: ExternalName}", "type"},
		{"service: {port: 0}", "port"},
		{"service: {port: 65536}", "port"},
		{"service: {nodePort: 30500}", "nodePort"},
		{"service: {type: NodePort, externalTrafficPolicy: Nearby}", "externalTrafficPolicy"},
		{"service: {loadBalancerSourceRanges: [10.0.0.1]}", "loadBalancerSourceRanges"},
		{"metrics: {serviceMonitor: {interval: often}}", "interval"},
		{"podDisruptionBudget: {maxUnavailable: 2}", "maxUnavailable"},
		{"networkPolicy: {clients: [all]}", "clients"},
		{"catalog: [x]", "catalog"},
	} {
		t.Run(c.values, func(t *testing.T) {
			if _, err := render(t, c.values); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestChartLint(t *testing.T) {
	for name, values := range map[string]string{"default": "", "everything": everything} {
		var given map[string]any
		if err := yaml.Unmarshal([]byte(values), &given); err != nil {
			t.Fatal(err)
		}
		result := lint.RunAll(chartDir, given, "ns")
		for _, m := range result.Messages {
			if m.Severity > support.InfoSev { // information is that there is no icon
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// Every value has a place in the schema, and every place in the schema a value: helm would accept what the schema
// lacks, were it not closed, and what has no default is not in values.yaml to be read about.
func TestSchemaCoversValues(t *testing.T) {
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := yaml.Unmarshal(chart.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, values, schema map[string]any)
	compare = func(path string, values, schema map[string]any) {
		properties, ok := schema["properties"].(map[string]any)
		if !ok {
			return // free
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s is not closed", path)
		}
		for key, property := range properties {
			value, ok := values[key]
			if !ok && path+key != "global" {
				t.Errorf("%s%s has no default", path, key)
			}
			if inner, ok := value.(map[string]any); ok {
				compare(path+key+".", inner, property.(map[string]any))
			}
		}
	}
	compare("", chart.Values, schema)
}

// probePaths returns where the chart has Kubernetes ask.
func probePaths(t *testing.T) (paths []string) {
	t.Helper()
	objects, err := render(t, "")
	if err != nil {
		t.Fatal(err)
	}
	broker := objects["StatefulSet r-felix"].(*appsv1.StatefulSet).Spec.Template.Spec.Containers[0]
	for _, p := range []*corev1.Probe{broker.StartupProbe, broker.LivenessProbe, broker.ReadinessProbe} {
		paths = append(paths, p.HTTPGet.Path)
	}
	return paths
}
