package mesh

import (
	"path/filepath"
	"regexp"
	"strings"
)

// Files for AWS that lie beside a specification, by the first key that they have. No specification begins so.
var (
	templateStart = regexp.MustCompile(`^\{?\s*["']?AWSTemplateFormatVersion["']?\s*:`)
	jsonStart     = regexp.MustCompile(`^(?:\[\s*)?\{\s*"(family|roles|ParameterKey)"\s*:`)
)

// whatBeside says what a file of a directory is when it is for AWS and no part of a specification: what `countersign
// generate` writes, and the parameters of a stack. It is empty for a part of one.
func whatBeside(path, content string) string {
	begin := strings.TrimPrefix(content, "\ufeff")
	for {
		begin = strings.TrimLeft(begin, " \t\r\n")
		if !strings.HasPrefix(begin, "#") && !strings.HasPrefix(begin, "---") {
			break
		}
		_, begin, _ = strings.Cut(begin, "\n")
	}
	if templateStart.MatchString(begin) {
		return "a template of CloudFormation"
	}
	if filepath.Ext(path) != ".json" {
		return ""
	}
	if found := jsonStart.FindStringSubmatch(begin); found != nil {
		return map[string]string{"family": "a task definition", "roles": "policies for roles", "ParameterKey": "parameters of a stack"}[found[1]]
	}
	return ""
}

// PassedOver are the files of a directory that [ReadDocuments] does not take for parts of a specification, because they
// are for AWS: their paths with what each is. It is empty for a file. The errors are those of ReadDocuments.
func PassedOver(path string) ([]string, error) {
	_, beside, err := readDocuments(path)
	return beside, err
}
