import { openPage } from "./shell.js";

await openPage("playground");
