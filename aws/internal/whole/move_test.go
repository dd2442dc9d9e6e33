package whole_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/pcafake"
)

// TestMoveToAnotherCA moves the services of a mesh to another private CA as docs/private-ca.md says: one after the other, or at once by
// force. Whatever is stored, the bundle has the root of every certificate that is current, and of every one that instances may present.
func TestMoveToAnotherCA(t *testing.T) {
	cloud := awstest.Start(t)
	pca := pcafake.New(pcafake.Options{})
	cloud.Mount("acm-pca", pca)
	cloud.Mount("ecs", awstest.Moto(t))
	var env []string
	for _, variable := range []string{"BEFORE", "NEXT"} {
		arn, err := pca.Add(pcafake.CA{ShortLived: true})
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, "COUNTERSIGN_AUTHORITY_"+variable+"_ARN="+arn)
	}
	name := "move-" + strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-")
	w := &world{t: t, dir: t.TempDir(), cloud: cloud}
	w.services(name, "checkout", "ledger")
	both := "{before: {type: acmpca, mode: short-lived}, next: {type: acmpca, mode: short-lived}}"
	text := onECS // of which no task is wanted yet
	specify := func(authorities, checkout, ledger string) {
		t.Helper()
		text := strings.NewReplacer("MESH", name,
			"authorities: {pca: {type: acmpca, mode: short-lived, budget: {certificates: 3}}}", "authorities: "+authorities,
			"certificates: {authority: pca, ttl: 24h}", "certificates: {authority: "+ledger+", ttl: 24h}",
			"  checkout:\n", "  checkout:\n    certificates: {authority: "+checkout+"}\n").Replace(text)
		if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := func(want int) {
		t.Helper()
		value, err := secretsmanager.NewFromConfig(cloud.Admin()).GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String(name + "/bundle"), VersionStage: aws.String("AWSCURRENT")})
		if err != nil || strings.Count(aws.ToString(value.SecretString), "BEGIN CERTIFICATE") != want {
			t.Errorf("the bundle has not %d roots: %v", want, err)
		}
	}
	once := []string{"rotate", "once", "--mesh", "mesh.yaml", "--no-deploy"}
	specify(both, "before", "before")
	w.must(0, env, once, "checkout: serial ", "ledger: serial ")
	roots(1)

	specify(both, "next", "before")
	w.must(0, env, once, "trust bundle "+name+"/bundle: version ", "checkout: serial ", "ledger: nothing is due")
	roots(2)
	specify("{next: {type: acmpca, mode: short-lived}}", "next", "next")
	w.must(0, env, once, "stays until nobody needs it", "checkout: nothing is due", "ledger: serial ")
	roots(2)
	w.must(0, env, once, "trust bundle "+name+"/bundle: version ", "checkout: nothing is due", "ledger: nothing is due")
	roots(1)

	// Back, and at once.
	specify("{before: {type: acmpca, mode: short-lived}}", "before", "before")
	issued := pca.Issued()
	w.must(1, env, once, "somebody still needs a root that the new trust bundle does not have", "give it to one of the services alone")
	roots(1)
	if pca.Issued() != issued {
		t.Error("something was issued that nobody would believe")
	}
	w.must(0, env, append(once, "--force"), "stays until nobody needs it", "checkout: serial ", "ledger: serial ")
	roots(2)
	w.must(0, env, once, "trust bundle "+name+"/bundle: version ")
	roots(1)

	// Where nobody can look, the instances may present what they have for as long as it is valid.
	text = specification
	specify(both, "next", "before")
	w.must(0, env, once, "checkout: serial ")
	specify("{next: {type: acmpca, mode: short-lived}}", "next", "next")
	w.must(0, env, once, "stays until nobody needs it", "ledger: serial ")
	w.must(0, env, once, "stays until nobody needs it", "(instances may still present the serial ", "nobody knows where its instances are")
	roots(2)
}
