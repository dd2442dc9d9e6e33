package awstest_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

var keysContract = []expectation{
	{"CreateKey", "gives a key that is Enabled, whose policy hands over to the account", createsKey},
	{"CreateAlias", "lets the alias be used for the key", aliasesKey},
	{"PutKeyPolicy", "is given back by GetKeyPolicy", keepsKeyPolicy},
	{"Decrypt", "gives what Encrypt took, and refuses another context: InvalidCiphertextException", bindsContext},
	{"GenerateDataKey", "gives a key of 32 bytes, in the open and encrypted", makesDataKey},
	{"DisableKey", "takes the key's id, and makes its use fail: DisabledException", disablesKey},
	{"DisableKey", "takes the key's ARN", disablesByARN},
	{"Sign", "signs a message given RAW, ECDSA_SHA_256", func(w *world) error { return signs(w, kmstypes.MessageTypeRaw) }},
	{"Sign", "signs a DIGEST without hashing it again", func(w *world) error { return signs(w, kmstypes.MessageTypeDigest) }},
}

func (w *world) key() (*kms.Client, *kmstypes.KeyMetadata, error) {
	client := kms.NewFromConfig(w.config)
	made, err := client.CreateKey(w.ctx, &kms.CreateKeyInput{})
	if err != nil {
		return nil, nil, err
	}
	return client, made.KeyMetadata, nil
}

func createsKey(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	got, err := client.GetKeyPolicy(w.ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: aws.String("default")})
	switch {
	case err != nil:
		return err
	case key.KeyState != kmstypes.KeyStateEnabled:
		return wrong("another state")
	case !strings.Contains(aws.ToString(got.Policy), "arn:aws:iam::123456789012:root"):
		return wrong("another policy")
	}
	return nil
}

func aliasesKey(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	alias := "alias/" + w.name("alias")
	if _, err := client.CreateAlias(w.ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}); err != nil {
		return err
	}
	got, err := client.DescribeKey(w.ctx, &kms.DescribeKeyInput{KeyId: &alias})
	if err == nil && aws.ToString(got.KeyMetadata.Arn) != aws.ToString(key.Arn) {
		return wrong("another key")
	}
	return err
}

func keepsKeyPolicy(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	document := policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},"Action":"kms:*","Resource":"*"}`)
	if _, err := client.PutKeyPolicy(w.ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, PolicyName: aws.String("default"), Policy: &document}); err != nil {
		return err
	}
	got, err := client.GetKeyPolicy(w.ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: aws.String("default")})
	if err == nil && aws.ToString(got.Policy) != document {
		return wrong("another policy")
	}
	return err
}

func bindsContext(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	made, err := client.Encrypt(w.ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: map[string]string{"a": "b"}})
	if err != nil {
		return err
	}
	got, err := client.Decrypt(w.ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: made.CiphertextBlob, EncryptionContext: map[string]string{"a": "b"}})
	if err != nil {
		return err
	}
	if string(got.Plaintext) != "x" {
		return wrong("gives something else")
	}
	_, err = client.Decrypt(w.ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: made.CiphertextBlob, EncryptionContext: map[string]string{"a": "c"}})
	return refuses(err, "InvalidCiphertextException")
}

func makesDataKey(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	made, err := client.GenerateDataKey(w.ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: kmstypes.DataKeySpecAes256})
	if err != nil {
		return err
	}
	got, err := client.Decrypt(w.ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob})
	if err == nil && (len(got.Plaintext) != 32 || !slices.Equal(got.Plaintext, made.Plaintext)) {
		return wrong("gives something else")
	}
	return err
}

func disablesKey(w *world) error {
	client, key, err := w.key()
	if err != nil {
		return err
	}
	if _, err := client.DisableKey(w.ctx, &kms.DisableKeyInput{KeyId: key.KeyId}); err != nil {
		return err
	}
	_, err = client.Encrypt(w.ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	return refuses(err, "DisabledException")
}

func disablesByARN(w *world) error {
	client, key, err := w.key()
	if err == nil {
		_, err = client.DisableKey(w.ctx, &kms.DisableKeyInput{KeyId: key.Arn})
	}
	return err
}

func signs(w *world, kind kmstypes.MessageType) error {
	client := kms.NewFromConfig(w.config)
	made, err := client.CreateKey(w.ctx, &kms.CreateKeyInput{KeySpec: kmstypes.KeySpecEccNistP256, KeyUsage: kmstypes.KeyUsageTypeSignVerify})
	if err != nil {
		return err
	}
	message := []byte("message")
	digest := sha256.Sum256(message)
	if kind == kmstypes.MessageTypeDigest {
		message = digest[:]
	}
	signed, err := client.Sign(w.ctx, &kms.SignInput{
		KeyId: made.KeyMetadata.KeyId, Message: message, MessageType: kind, SigningAlgorithm: kmstypes.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return err
	}
	public, err := client.GetPublicKey(w.ctx, &kms.GetPublicKeyInput{KeyId: made.KeyMetadata.KeyId})
	if err != nil {
		return err
	}
	parsed, err := x509.ParsePKIXPublicKey(public.PublicKey)
	if key, ok := parsed.(*ecdsa.PublicKey); err != nil || !ok || !ecdsa.VerifyASN1(key, digest[:], signed.Signature) {
		return wrong("the signature does not verify")
	}
	return nil
}

var callersContract = []expectation{
	{"AssumeRole", "gives credentials that GetCallerIdentity knows as arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION", assumesRole},
	{"AssumeRole", "gives credentials that expire, with a session token", expires},
}

// trusting makes a role that the account may take.
func (w *world) trusting() (*sts.AssumeRoleOutput, string, error) {
	name := w.name("role")
	trust := policy(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::123456789012:root"},"Action":"sts:AssumeRole"}`)
	made, err := iam.NewFromConfig(w.config).CreateRole(w.ctx, &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &trust})
	if err != nil {
		return nil, "", err
	}
	taken, err := sts.NewFromConfig(w.config).AssumeRole(w.ctx, &sts.AssumeRoleInput{RoleArn: made.Role.Arn, RoleSessionName: aws.String("session")})
	return taken, name, err
}

func assumesRole(w *world) error {
	taken, name, err := w.trusting()
	if err != nil {
		return err
	}
	config := w.config.Copy()
	config.Credentials = aws.CredentialsProviderFunc(func(ctx) (aws.Credentials, error) {
		return aws.Credentials{
			AccessKeyID: *taken.Credentials.AccessKeyId, SecretAccessKey: *taken.Credentials.SecretAccessKey, SessionToken: *taken.Credentials.SessionToken,
		}, nil
	})
	got, err := sts.NewFromConfig(config).GetCallerIdentity(w.ctx, &sts.GetCallerIdentityInput{})
	if err == nil && aws.ToString(got.Arn) != "arn:aws:sts::123456789012:assumed-role/"+name+"/session" {
		return wrong("another ARN")
	}
	return err
}

func expires(w *world) error {
	taken, _, err := w.trusting()
	if err == nil && (taken.Credentials.Expiration == nil || aws.ToString(taken.Credentials.SessionToken) == "") {
		return wrong("neither")
	}
	return err
}

var rolesContract = []expectation{
	{"CreateRole", "gives an ARN with the path and an id that begins with AROA", createsRole},
	{"CreateRole", "refuses a name that is taken: EntityAlreadyExists", refusesTakenRole},
	{"GetRole", "gives the trust policy back, as a URL encodes it", keepsTrust},
	{"PutRolePolicy", "is listed by ListRolePolicies and given back by GetRolePolicy", keepsRolePolicy},
	{"AttachRolePolicy", "is listed by ListAttachedRolePolicies; GetPolicyVersion gives the text", attachesPolicy},
	{"GetRolePolicy", "of a policy that is not there: NoSuchEntity", missesRolePolicy},
}

const trustTasks = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`

// role makes one below a path.
func (w *world) role() (*iam.Client, *iam.CreateRoleOutput, error) {
	client := iam.NewFromConfig(w.config)
	made, err := client.CreateRole(w.ctx, &iam.CreateRoleInput{RoleName: aws.String(w.name("role")), Path: aws.String("/contract/"), AssumeRolePolicyDocument: aws.String(trustTasks)})
	return client, made, err
}

func createsRole(w *world) error {
	_, made, err := w.role()
	if err == nil && (aws.ToString(made.Role.Arn) != "arn:aws:iam::123456789012:role/contract/"+aws.ToString(made.Role.RoleName) ||
		!strings.HasPrefix(aws.ToString(made.Role.RoleId), "AROA")) {
		return wrong("others")
	}
	return err
}

func refusesTakenRole(w *world) error {
	client, made, err := w.role()
	if err != nil {
		return err
	}
	_, err = client.CreateRole(w.ctx, &iam.CreateRoleInput{RoleName: made.Role.RoleName, AssumeRolePolicyDocument: aws.String(trustTasks)})
	return refuses(err, "EntityAlreadyExists")
}

func keepsTrust(w *world) error {
	client, made, err := w.role()
	if err != nil {
		return err
	}
	got, err := client.GetRole(w.ctx, &iam.GetRoleInput{RoleName: made.Role.RoleName})
	if err != nil {
		return err
	}
	if text, err := url.QueryUnescape(aws.ToString(got.Role.AssumeRolePolicyDocument)); err != nil || text != trustTasks {
		return wrong("another policy")
	}
	return nil
}

func keepsRolePolicy(w *world) error {
	client, made, err := w.role()
	if err != nil {
		return err
	}
	document := policy(allow("*", "secretsmanager:ListSecrets"))
	_, err = client.PutRolePolicy(w.ctx, &iam.PutRolePolicyInput{RoleName: made.Role.RoleName, PolicyName: aws.String("p"), PolicyDocument: &document})
	if err != nil {
		return err
	}
	listed, err := client.ListRolePolicies(w.ctx, &iam.ListRolePoliciesInput{RoleName: made.Role.RoleName})
	if err != nil {
		return err
	}
	got, err := client.GetRolePolicy(w.ctx, &iam.GetRolePolicyInput{RoleName: made.Role.RoleName, PolicyName: aws.String("p")})
	if err != nil {
		return err
	}
	if text, err := url.QueryUnescape(aws.ToString(got.PolicyDocument)); err != nil || text != document || !slices.Equal(listed.PolicyNames, []string{"p"}) {
		return wrong("another policy")
	}
	return nil
}

func attachesPolicy(w *world) error {
	client, made, err := w.role()
	if err != nil {
		return err
	}
	document := policy(allow("*", "secretsmanager:ListSecrets"))
	managed, err := client.CreatePolicy(w.ctx, &iam.CreatePolicyInput{PolicyName: aws.String(w.name("policy")), PolicyDocument: &document})
	if err != nil {
		return err
	}
	if _, err := client.AttachRolePolicy(w.ctx, &iam.AttachRolePolicyInput{RoleName: made.Role.RoleName, PolicyArn: managed.Policy.Arn}); err != nil {
		return err
	}
	listed, err := client.ListAttachedRolePolicies(w.ctx, &iam.ListAttachedRolePoliciesInput{RoleName: made.Role.RoleName})
	if err != nil {
		return err
	}
	got, err := client.GetPolicyVersion(w.ctx, &iam.GetPolicyVersionInput{PolicyArn: managed.Policy.Arn, VersionId: managed.Policy.DefaultVersionId})
	if err != nil {
		return err
	}
	if text, err := url.QueryUnescape(aws.ToString(got.PolicyVersion.Document)); err != nil || text != document || len(listed.AttachedPolicies) != 1 {
		return wrong("another policy")
	}
	return nil
}

func missesRolePolicy(w *world) error {
	client, made, err := w.role()
	if err != nil {
		return err
	}
	_, err = client.GetRolePolicy(w.ctx, &iam.GetRolePolicyInput{RoleName: made.Role.RoleName, PolicyName: aws.String("absent")})
	return refuses(err, "NoSuchEntity")
}
