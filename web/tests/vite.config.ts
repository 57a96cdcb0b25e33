import { defineConfig } from "vite";

// Node 20 runs no TypeScript: the tests are built first, with what they test.
export default defineConfig({
  build: {
    target: "node20",
    ssr: true,
    outDir: "../build/web-tests",
    emptyOutDir: true,
    rollupOptions: { input: "tests/text.test.ts" },
  },
});
