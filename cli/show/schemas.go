package show

import (
	"embed"
	"strings"
)

// schemas has the JSON Schemas of documents and events as files that "make docs"
// generates from their types.
//
//go:embed schemas
var schemas embed.FS

// Schema returns the JSON Schema of this name, or nil if there is none.
func Schema(name string) []byte {
	text, err := schemas.ReadFile("schemas/" + name + ".json")
	if err != nil {
		return nil
	}
	return text
}

// SchemaNames returns the names of the schemas, sorted.
func SchemaNames() []string {
	files, _ := schemas.ReadDir("schemas")
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(file.Name(), ".json")
	}
	return names
}
