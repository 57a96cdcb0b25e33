import { defineConfig } from "vite";

// One script and one style sheet: headscope inlines both into one HTML file and allows the script by
// its hash. `npm run build -- --outDir DIR` builds elsewhere, to compare.
export default defineConfig({
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "none" },
  define: { "process.env.NODE_ENV": '"production"' },
  build: {
    target: "es2022",
    outDir: "../src/headscope/page/bundle",
    emptyOutDir: true,
    lib: {
      entry: "src/main.tsx",
      formats: ["iife"],
      name: "headscope",
      fileName: () => "page.js",
      cssFileName: "page",
    },
  },
});
