// Command vault is HashiCorp's Vault with the parts that the tests use: the core, its HTTP API, the
// key-value engine and two ways to log in, in memory. It takes the arguments of the real command's dev
// mode, `server -dev -dev-root-token-id=T -dev-listen-address=A`, so that the real command does as well.
//
// The whole product cannot be built from its published module (its go.mod replaces modules by folders
// that the module leaves out), and has a thousand packages more.
package main

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"

	log "github.com/hashicorp/go-hclog"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

var (
	engines = map[string]logical.Factory{"kv": kv.Factory}
	logins  = map[string]logical.Factory{"approle": approle.Factory, "kubernetes": kubernetes.Factory}
)

// catalogue tells the core what is built in.
type catalogue struct{}

func of(kind consts.PluginType) map[string]logical.Factory {
	switch kind {
	case consts.PluginTypeSecrets:
		return engines
	case consts.PluginTypeCredential:
		return logins
	}
	return nil
}

func (catalogue) Contains(name string, kind consts.PluginType) bool {
	_, ok := of(kind)[name]
	return ok
}

func (catalogue) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	factory, ok := of(kind)[name]
	return func() (interface{}, error) { return factory, nil }, ok
}

func (catalogue) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range of(kind) {
		names = append(names, name)
	}
	return names
}

func (c catalogue) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, c.Contains(name, kind)
}

func (catalogue) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func run(token, address string) error {
	logger := log.NewNullLogger()
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Logger:             logger,
		Physical:           storage,
		DisableMlock:       true,
		BuiltinRegistry:    catalogue{},
		LogicalBackends:    engines,
		CredentialBackends: logins,
	})
	if err != nil {
		return err
	}
	ctx := namespace.RootContext(context.Background())
	one := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}
	made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: one, RecoveryConfig: one})
	if err != nil {
		return err
	}
	key := append([]byte(nil), made.SecretShares[0]...)
	if _, err := core.Unseal(key); err != nil {
		return err
	}
	for _, request := range []*logical.Request{
		{Path: "auth/token/create", Data: map[string]interface{}{
			"id": token, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true,
		}},
		{Path: "sys/mounts/secret", Data: map[string]interface{}{
			"type": "kv", "options": map[string]string{"version": "2"},
		}},
	} {
		request.Operation, request.ClientToken = logical.UpdateOperation, made.RootToken
		answer, err := core.HandleRequest(ctx, request)
		if err == nil && answer.IsError() {
			err = answer.Error()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", request.Path, err)
		}
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("Unseal Key:", base64.StdEncoding.EncodeToString(made.SecretShares[0]))
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{
		Core:           core,
		ListenerConfig: &configutil.Listener{Address: listener.Addr().String()},
	})
	return http.Serve(listener, handler)
}

func main() {
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	flags.Bool("dev", false, "always so")
	token := flags.String("dev-root-token-id", "root", "a token that may do everything")
	address := flags.String("dev-listen-address", "127.0.0.1:8200", "where to listen")
	if len(os.Args) < 2 || os.Args[1] != "server" {
		fmt.Fprintln(os.Stderr, "usage: vault server [-dev] [-dev-root-token-id=T] [-dev-listen-address=A]")
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:])
	fmt.Fprintln(os.Stderr, run(*token, *address))
	os.Exit(1)
}
