import { openPage } from "./shell.js";

await openPage("dashboard");
